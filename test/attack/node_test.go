package attack

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A link below the kubelet directory leads no publish out of it, and none is made there.
func TestAttackNodeLinkBelowKubelet(t *testing.T) {
	plugin, disk, ctx := rig.NewPlugin(t, nil), rig.NewDisk(t, rig.MiB), rig.Context(t)
	volume := plugin.NewVolume(t, "vol", disk.Path)
	rig.Must(t, volume.Stage(ctx))
	outside := t.TempDir()
	rig.Must(t, os.Mkdir(filepath.Join(outside, "below"), 0o755))
	rig.Must(t, os.Symlink(outside, filepath.Join(plugin.KubeletDir, "link")))
	for name, target := range map[string]string{
		"parent":    "link/device",
		"component": "link/below/device",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(plugin.KubeletDir, target)
			err := volume.Publish(ctx, path)
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "symbolic link") {
				t.Errorf("publish through a link: %v", err)
			}
			if _, err := os.Lstat(path); err == nil {
				t.Error("the device is outside of the kubelet directory")
				rig.Must(t, volume.Unpublish(ctx, path))
			}
		})
	}
}

// A flood of long messages does not end a plugin that has the memory of the manifests, and
// another caller is served.
func TestAttackNodeFlood(t *testing.T) {
	kubeletDir := rig.KubeletDir(t)
	plugin, ctx := rig.Start(t, rig.Build(t, ""), kubeletDir, rig.StateDir(t)), rig.Context(t)
	_, err := plugin.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	rig.Must(t, err)
	limitMemory(t, plugin, 128*rig.MiB)
	flood := map[string]string{"x": strings.Repeat("x", 3900<<10)}
	var group sync.WaitGroup
	for range 20 {
		attacker := rig.Connect(t, plugin.Socket, kubeletDir)
		for range 10 {
			group.Go(func() {
				_, err := attacker.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeContext: flood})
				if status.Code(err) != codes.ResourceExhausted {
					t.Errorf("a message of 3.9 MB is not refused for its length: %v", status.Code(err))
				}
			})
		}
	}
	group.Wait()
	if _, err := plugin.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}); err != nil || !plugin.Runs() {
		t.Errorf("another caller is not served: %v; the plugin runs: %t", err, plugin.Runs())
	}
}

// limitMemory has a process end where it takes more, as a container does, in a cgroup that
// goes with the test.
func limitMemory(t *testing.T, plugin *rig.Process, limit int) {
	t.Helper()
	root, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat(root); err != nil {
		root, file = "/sys/fs/cgroup", "memory.max"
	}
	pid := strconv.Itoa(plugin.Pid())
	group := filepath.Join(root, "rawblock-test-"+pid)
	rig.Must(t, os.Mkdir(group, 0o755))
	t.Cleanup(func() {
		plugin.Kill()
		rig.Eventually(t, func() error { return os.Remove(group) }) // Its last moments keep the cgroup.
	})
	rig.Must(t, os.WriteFile(filepath.Join(group, file), []byte(strconv.Itoa(limit)), 0o600))
	rig.Must(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(pid), 0o600))
}

// A setuid rawblockctl reads no file for who may not read it.
func TestAttackNodeSetuid(t *testing.T) {
	rig.RequireRoot(t)
	// Nobody must reach it.
	dir, err := os.MkdirTemp("/var/tmp", "rawblock-attack-")
	rig.Must(t, err)
	t.Cleanup(func() { rig.Must(t, os.RemoveAll(dir)) })
	rig.Must(t, os.Chmod(dir, 0o755))
	secret, tool := filepath.Join(dir, "secret"), filepath.Join(dir, "rawblockctl")
	rig.Must(t, os.WriteFile(secret, []byte("root:$6$thehash\n"), 0o600))
	rig.Must(t, build(t.Context(), tool))
	rig.Must(t, os.Chmod(tool, 0o755|os.ModeSetuid))
	command := exec.CommandContext(t.Context(), tool, "--socket", dir+"/none", "--config", secret, "volumes")
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	output, err := command.CombinedOutput()
	if err == nil || strings.Contains(string(output), "thehash") || !strings.Contains(string(output), "setuid") {
		t.Errorf("a setuid rawblockctl: %v\n%s", err, output)
	}
}

// Whoever can write to a directory that the plugin believes decides what it does, so the
// plugin does not start.
func TestAttackNodeWritableDirectories(t *testing.T) {
	rig.RequireRoot(t)
	binary := rig.Build(t, "")
	type paths struct{ root, state, pool, socket, config string }
	for name, c := range map[string]struct {
		at   func(paths) string
		make func(path string) error
		want string
	}{
		"state, all may write":         {func(p paths) string { return p.state }, mode(0o777), "chmod go-w"},
		"state, sticky":                {func(p paths) string { return p.state }, mode(0o777 | os.ModeSticky), "chmod go-w"},
		"state, foreign":               {func(p paths) string { return p.state }, foreign, "chown root:root"},
		"pool, all may write":          {func(p paths) string { return p.pool }, mode(0o777), "chmod go-w"},
		"pool, foreign":                {func(p paths) string { return p.pool }, foreign, "chown root:root"},
		"volumes of a pool":            {func(p paths) string { return filepath.Join(p.pool, "volumes") }, mode(0o777), "chmod go-w"},
		"socket, group":                {func(p paths) string { return p.socket }, group, "chmod go-w"},
		"socket, foreign":              {func(p paths) string { return p.socket }, foreign, "chown root:root"},
		"configuration, all may write": {func(p paths) string { return p.config }, mode(0o666), "chmod go-w"},
		"configuration, foreign":       {func(p paths) string { return p.config }, foreign, "chown root:root"},
		"what is above, all may write": {func(p paths) string { return p.root }, mode(0o777), "chmod go-w"},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			p := paths{root, root + "/state", root + "/pool", root + "/socket", root + "/config.yaml"}
			for _, dir := range []string{p.state, p.pool + "/volumes", p.socket} {
				rig.Must(t, os.MkdirAll(dir, 0o700))
			}
			rig.Must(t, os.WriteFile(p.config, []byte("pools:\n- name: files\n  file:\n    directory: "+p.pool+"\n"), 0o600))
			rig.Must(t, c.make(c.at(p)))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			plugin := exec.CommandContext(ctx, binary, "--node-id=node", "--config="+p.config, "--state-dir="+p.state,
				"--kubelet-dir="+rig.KubeletDir(t), "--endpoint=unix://"+p.socket+"/csi.sock")
			output, err := plugin.CombinedOutput()
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(output), c.want+" "+c.at(p)) {
				t.Errorf("the plugin: %v\n%s", err, output)
			}
		})
	}
}

func mode(mode os.FileMode) func(string) error {
	return func(path string) error { return os.Chmod(path, mode) }
}

func foreign(path string) error { return os.Chown(path, 65534, 65534) }

func group(path string) error {
	return errors.Join(os.Chown(path, 0, 65534), os.Chmod(path, 0o770))
}

func build(ctx context.Context, to string) error {
	command := exec.CommandContext(ctx, "go", "build", "-o", to, "../../cmd/rawblockctl")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	return command.Run()
}
