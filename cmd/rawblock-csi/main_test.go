package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// asProgram has the test binary be the program, so that a test sees its exit
// code, its output and how it takes a signal.
const asProgram = "RAWBLOCK_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	rig.Main(m)
}

func newProgram(t *testing.T, args ...string) (command *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	command = exec.CommandContext(rig.Context(t), os.Args[0], args...)
	command.Env = append(os.Environ(), asProgram+"=1")
	command.Stdout, command.Stderr = stdout, stderr
	return command, stdout, stderr
}

func TestCommandLine(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	rig.Must(t, os.WriteFile(config, []byte("devices:\n  allow: [sdb]\n"), 0o600))
	for name, test := range map[string]struct {
		args   []string
		exit   int
		stdout string
		stderr []string
	}{
		"version":         {[]string{"--version"}, 0, "csi.rawblock.dev unknown\n", nil},
		"help":            {[]string{"--help"}, 0, "", []string{"-endpoint", "unix:///var/lib/kubelet/plugins/csi.rawblock.dev/csi.sock", "-node-id", "-kubelet-dir"}},
		"unknown flag":    {[]string{"--nodeid=x"}, 2, "", []string{"flag provided but not defined: -nodeid", "-node-id"}},
		"bad number":      {[]string{"--v=much"}, 2, "", []string{`invalid value "much" for flag -v`}},
		"extra argument":  {[]string{"--node-id", "x", "y"}, 1, "", []string{`rawblock-csi: unexpected argument "y"; settings are given as --flag=value`}},
		"log format":      {[]string{"--logging-format=xml"}, 1, "", []string{`rawblock-csi: --logging-format is "xml"; expected text or json`}},
		"no such config":  {[]string{"--config=" + config + "-no"}, 1, "", []string{config + "-no: no such file or directory"}},
		"bad config":      {[]string{"--config=" + config}, 1, "", []string{config + ": line 2", "expected an absolute path"}},
		"no node ID":      {[]string{"--kubelet-dir=/"}, 1, "", []string{"set --node-id to the name of the Kubernetes node"}},
		"no kubelet":      {[]string{"--node-id=x", "--kubelet-dir=" + config + "-no"}, 1, "", []string{"kubelet directory", "no such file or directory"}},
		"one socket":      {[]string{"--node-id=x", "--kubelet-dir=/", "--state-dir=/run/x", "--endpoint=unix:///run/x/admin.sock"}, 1, "", []string{"--endpoint is unix:///run/x/admin.sock, which is the admin socket"}},
		"kubelet in tree": {[]string{"--node-id=x", "--kubelet-dir=kubelet"}, 1, "", []string{`"kubelet" is not an absolute path`}},
	} {
		t.Run(name, func(t *testing.T) {
			command, stdout, stderr := newProgram(t, test.args...)
			err := command.Run()
			if got := command.ProcessState.ExitCode(); got != test.exit {
				t.Errorf("ended with %d (%v), want %d", got, err, test.exit)
			}
			if stdout.String() != test.stdout {
				t.Errorf("printed %q, want %q", stdout, test.stdout)
			}
			for _, words := range test.stderr {
				if !strings.Contains(stderr.String(), words) {
					t.Errorf("the error lacks %q:\n%s", words, stderr)
				}
			}
			if test.exit == 1 && strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("more than one line of error:\n%s", stderr)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	got, err := parseFlags(nil, new(bytes.Buffer))
	rig.Must(t, err)
	var want flags
	want.Endpoint = "unix:///var/lib/kubelet/plugins/csi.rawblock.dev/csi.sock"
	want.KubeletDir, want.stateDir, want.loggingFormat = "/var/lib/kubelet", "/run/rawblock-csi", "text"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The two sockets are two, by whatever names.
func TestCheckSockets(t *testing.T) {
	dir := t.TempDir()
	rig.Must(t, os.Mkdir(dir+"/state", 0o700))
	rig.Must(t, os.Symlink("state", dir+"/link"))
	admin := dir + "/state/admin.sock"
	for endpoint, same := range map[string]bool{
		admin:                              true,
		"unix://" + admin:                  true,
		"unix:" + admin:                    true,
		dir + "/state/../state/admin.sock": true,
		dir + "/link/admin.sock":           true,
		dir + "/state/csi.sock":            false,
		dir + "/admin.sock":                false,
		dir + "/none/admin.sock":           false,
	} {
		if err := checkSockets(endpoint, admin); (err != nil) != same {
			t.Errorf("%s: got %v", endpoint, err)
		}
	}
	if checkSockets(dir+"/none/admin.sock", dir+"/none/admin.sock") == nil {
		t.Error("one path in a directory that is yet to be made is taken for both")
	}
}

// The plugin as it runs on a node, from its start to SIGTERM.
func TestRunAndStop(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			kubeletDir, stateDir, disk := rig.KubeletDir(t), rig.StateDir(t), rig.NewDisk(t, rig.MiB)
			config, socket := filepath.Join(t.TempDir(), "config.yaml"), kubeletDir+"/csi.sock"
			rig.Must(t, os.WriteFile(config, []byte("maxVolumes: 7\npools: []\ndevices: {allow: [/dev/loop*]}\n"), 0o600))
			command, stdout, stderr := newProgram(t, "--endpoint=unix://"+socket, "--node-id=node-1", "--kubelet-dir="+kubeletDir,
				"--state-dir="+stateDir, "--config="+config, "--v=5", "--logging-format="+format)
			rig.Must(t, command.Start())
			plugin, ctx := rig.Connect(t, socket, kubeletDir), rig.Context(t)

			info, err := plugin.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
			if err != nil || info.GetNodeId() != "node-1" || info.GetMaxVolumesPerNode() != 7 {
				t.Errorf("got %v, %v", info, err)
			}
			volume := plugin.NewVolume(t, "vol", disk.Path)
			rig.Must(t, volume.Stage(ctx))
			target := volume.Target(t, "pod-1")
			rig.Must(t, volume.Publish(ctx, target))
			other := plugin.NewVolume(t, "other", "/dev/null")
			if err := other.Stage(ctx); status.Code(err) != codes.InvalidArgument {
				t.Errorf("a device that the configuration does not allow: %v", err)
			}

			rig.Must(t, command.Process.Signal(syscall.SIGTERM))
			if err := command.Wait(); err != nil {
				t.Errorf("after SIGTERM it ended with %v:\n%s", err, stderr)
			}
			for _, path := range []string{socket, stateDir + "/admin.sock"} {
				if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("it left its socket %s behind: %v", path, err)
				}
			}
			if info, err := os.Lstat(target); err != nil || info.Mode().Type() != fs.ModeDevice {
				t.Errorf("what was published is now %v (%v)", info, err)
			}
			if stdout.Len() > 0 {
				t.Errorf("printed %q", stdout)
			}
			wantLog(t, stderr.String(), format == "json")
		})
	}
}

func wantLog(t *testing.T, log string, isJSON bool) {
	t.Helper()
	for _, words := range []string{"Serving", "node-1", "NodePublishVolume", "Call done", "Call failed", "target_path", "InvalidArgument"} {
		if !strings.Contains(log, words) {
			t.Errorf("the log lacks %q:\n%s", words, log)
		}
	}
	for line := range strings.Lines(log) {
		var entry struct{ Level, Msg string }
		err := json.Unmarshal([]byte(line), &entry)
		if !isJSON && err == nil || isJSON && (err != nil || entry.Level == "" || entry.Msg == "") {
			t.Errorf("JSON wanted: %t; got %q (%v)", isJSON, line, err)
		}
	}
}
