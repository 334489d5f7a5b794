package attack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// hotAttach is the plugin as far as it attaches devices to running containers.
type hotAttach struct {
	*hotplug.Manager
	publisher *publish.Publisher
	stateDir  string
}

func newHotAttach(t *testing.T) *hotAttach {
	t.Helper()
	return startHotAttach(t, rig.StateDir(t))
}

// startHotAttach starts it with what an earlier one left.
func startHotAttach(t *testing.T, stateDir string) *hotAttach {
	t.Helper()
	sysfs := blockdev.NewSysfs("/sys")
	publisher, err := publish.New(stateDir, sysfs)
	rig.Must(t, err)
	hierarchies, err := devcgroup.FindHierarchies(t.Name())
	rig.Must(t, err)
	manager, err := hotplug.New(hotplug.Options{
		StateDir: stateDir, Volumes: publisher, Inflight: &inflight.Names{}, Hierarchies: hierarchies, Sysfs: sysfs,
	})
	rig.Must(t, err)
	t.Cleanup(manager.Close)
	return &hotAttach{manager, publisher, stateDir}
}

// starts are the ways to start a container, which differ in when it gets its root.
func starts() map[string]oci.Config {
	return map[string]oci.Config{
		"v1": {}, "v2": {CgroupV2: true},
		"v1 user namespace": {UserNamespace: true}, "v2 user namespace": {CgroupV2: true, UserNamespace: true},
	}
}

// reachable lets a container with a user namespace reach its root filesystem.
func reachable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for path := dir; path != filepath.Dir(os.TempDir()) && path != "/"; path = filepath.Dir(path) {
		rig.Must(t, os.Chmod(path, 0o755))
	}
	return dir
}

// Who asks for a device while a container starts has no node made on the host: its first
// process is in the container's cgroup then, and still has the host's root.
func TestAttackStartingContainer(t *testing.T) {
	rig.RequireContainers(t)
	for name, config := range starts() {
		for _, hook := range []string{"createRuntime", "createContainer"} {
			t.Run(name+"/"+hook, func(t *testing.T) { attachWhileStarting(t, config, hook) })
		}
	}
}

func attachWhileStarting(t *testing.T, config oci.Config, hook string) {
	manager, disk, dir, outside := newHotAttach(t), rig.NewDisk(t, rig.MiB), t.TempDir(), reachable(t)
	ctx := context.WithoutCancel(rig.Context(t)) // It is started whole before it is deleted.
	config.Dir, config.Prefix = reachable(t), "rawblock-test"
	state, proceed := filepath.Join(dir, "state"), filepath.Join(dir, "proceed")
	rig.Must(t, os.Chmod(dir, 0o777))
	script := fmt.Sprintf("cat >%[1]s.new && mv %[1]s.new %[1]s && while [ ! -e %[2]s ]; do sleep 0.05; done", state, proceed)
	config.Hooks = map[string]oci.Hook{hook: {Path: "/bin/sh", Args: []string{"sh", "-c", "PATH=/usr/bin:/bin; " + script}}}
	for path := dir; path != filepath.Dir(os.TempDir()) && path != "/"; path = filepath.Dir(path) {
		rig.Must(t, os.Chmod(path, 0o777))
	}
	started := make(chan error, 1)
	var container *oci.Container
	go func() {
		var err error
		container, err = oci.Start(ctx, config)
		started <- err
	}()
	t.Cleanup(func() {
		rig.Must(t, os.WriteFile(proceed, nil, 0o666))
		rig.Must(t, <-started)
		rig.Must(t, container.Delete(ctx))
	})
	var pid int
	rig.Eventually(t, func() (err error) {
		select {
		case err := <-started:
			started <- err
			t.Fatalf("it ended before its hook: %v", err)
		default:
		}
		pid, err = pidIn(state)
		return err
	})

	for _, path := range []string{outside + "/xvdb", "/mnt/rawblock-attack"} {
		attached, err := manager.Attach(ctx, hotplug.Request{Device: disk.Path, Target: hotplug.Target{PID: pid}, Path: path})
		if err == nil {
			t.Errorf("while the container starts, %s is attached: %+v", path, attached)
			_, err = manager.Detach(ctx, attached.ID)
			rig.Must(t, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a node was made on the host: %s (%v)", path, err)
			rig.Must(t, os.Remove(path))
		}
	}
}

// pidIn reads the number of the container's process from the state that a runtime gives
// to a hook.
func pidIn(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), `"pid":`)
	number, _, _ := strings.Cut(rest, ",")
	return strconv.Atoi(strings.Trim(number, " }\n"))
}

// The same without a hook: again and again while containers start, by the ID.
func TestAttackStartingContainerRace(t *testing.T) {
	rig.RequireContainers(t)
	for name, config := range starts() {
		t.Run(name, func(t *testing.T) {
			for i := range 5 {
				raceStart(t, config, i)
			}
		})
	}
}

func raceStart(t *testing.T, config oci.Config, i int) {
	manager, disk := newHotAttach(t), rig.NewDisk(t, rig.MiB)
	ctx := context.WithoutCancel(rig.Context(t))
	config.Dir = reachable(t)
	config.Name = fmt.Sprintf("%024x%08x%032x", time.Now().UnixNano(), i, os.Getpid())
	path := "/mnt/" + config.Name
	if config.UserNamespace {
		path = "/dev/" + config.Name // The only directory that belongs to who is root there.
	}
	t.Cleanup(func() { os.Remove(path) }) // It should not be there.
	started := make(chan error, 1)
	var container *oci.Container
	go func() {
		var err error
		container, err = oci.Start(ctx, config)
		started <- err
	}()
	request := hotplug.Request{Device: disk.Path, Target: hotplug.Target{Container: config.Name}, Path: path}
	attached, err := manager.Attach(ctx, request)
	for deadline := time.Now().Add(patience); err != nil && time.Now().Before(deadline); {
		attached, err = manager.Attach(ctx, request)
	}
	rig.Must(t, <-started)
	defer func() { rig.Must(t, container.Delete(ctx)) }()
	rig.Must(t, err)
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("start %d: the node was made on the host (%v)", i, err)
	}
	rig.Must(t, manager.Reconcile(ctx)) // The runtime may have set its own rules after it.
	if said, err := container.Exec(ctx, "head", "-c", "1", path); err != nil {
		t.Errorf("start %d: the container cannot read it: %s", i, said)
	}
	_, err = manager.Detach(ctx, attached.ID)
	rig.Must(t, err)
}

// A cgroup below the container's that is there already gets the device with it, and one
// that is made later does not keep it.
func TestAttackHotAttachCgroupsBelow(t *testing.T) {
	rig.RequireContainers(t)
	for name, config := range map[string]oci.Config{"v1": {}, "v2": {CgroupV2: true}} {
		t.Run(name, func(t *testing.T) {
			manager, disk, container := newHotAttach(t), rig.NewDisk(t, rig.MiB), rig.NewContainer(t, config)
			ctx := rig.Context(t)
			pid, err := container.PID(ctx)
			rig.Must(t, err)
			dir := deviceCgroup(t, container)
			before := below(t, dir)
			attached, err := manager.Attach(ctx, hotplug.Request{Device: disk.Path, Target: hotplug.Target{PID: pid}, Path: "/dev/xvdb"})
			rig.Must(t, err)
			after := below(t, before)
			for _, cgroup := range []string{dir, before, after} {
				if err := openIn(t, cgroup, disk.Path); err != nil {
					t.Errorf("a process in %s cannot open the device: %v", cgroup, err)
				}
			}
			_, err = manager.Detach(ctx, attached.ID)
			rig.Must(t, err)
			for _, cgroup := range []string{dir, before, after} {
				if err := openIn(t, cgroup, disk.Path); err == nil {
					t.Errorf("a process in %s can still open the device", cgroup)
				}
			}
		})
	}
}

// deviceCgroup is the directory of a container's device cgroup.
func deviceCgroup(t *testing.T, container *rig.Container) string {
	t.Helper()
	for _, path := range container.Cgroups() {
		if strings.Contains(path, "/devices/") {
			return path
		}
	}
	found := container.Cgroups()
	if len(found) == 0 {
		t.Fatal("the container has no cgroup")
	}
	return found[0]
}

// below makes a cgroup in another one.
func below(t *testing.T, cgroup string) string {
	t.Helper()
	dir, err := os.MkdirTemp(cgroup, "below-")
	rig.Must(t, err)
	t.Cleanup(func() { rig.Must(t, os.Remove(dir)) })
	return dir
}

// openIn has a process in a cgroup open a device.
func openIn(t *testing.T, cgroup, device string) error {
	t.Helper()
	output, err := exec.CommandContext(rig.Context(t), "sh", "-ec", `echo $$ >"$0/cgroup.procs"; exec 3<"$1"`, cgroup, device).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	return nil
}
