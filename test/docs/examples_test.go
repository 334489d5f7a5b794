package docs_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// The command of the ScyllaDB example gives a blank device a filesystem, finds it again,
// and formats nothing that has anything on it. ScyllaDB itself is not there: what it would
// have done is to write a file.
func TestScyllaExample(t *testing.T) {
	rig.RequireRoot(t)
	data, err := os.ReadFile(filepath.Join(root, "deploy/kubernetes/examples/scylladb/statefulset.yaml"))
	rig.Must(t, err)
	var set struct {
		Spec struct {
			Template struct {
				Spec struct{ Containers []struct{ Command []string } }
			}
		}
	}
	rig.Must(t, yaml.Unmarshal(data, &set))
	command := set.Spec.Template.Spec.Containers[0].Command
	script, server, found := strings.Cut(command[len(command)-1], "exec ")
	if !found || !strings.HasPrefix(server, "/docker-entrypoint.py ") {
		t.Fatalf("the command does not end with the server: %q", command)
	}
	disk, dir := rig.NewDisk(t, 320*rig.MiB), t.TempDir() // XFS takes no less than 300.
	start := func() (string, error) {
		script := rig.Replace(t, script+"cat started || echo once > started\n", "/dev/xvda", disk.Path, "/var/lib/scylla", dir, "started", dir+"/started")
		// Its own mounts, as in a container.
		args := append([]string{"--mount"}, append(command[:len(command)-1:len(command)-1], script)...)
		output, err := exec.CommandContext(rig.Context(t), "unshare", args...).CombinedOutput()
		t.Logf("%v\n%s", err, output)
		return string(output), err
	}
	_, err = start()
	rig.Must(t, err)
	if output, err := start(); err != nil || !strings.HasSuffix(output, "once\n") {
		t.Error("what was written is not there when it starts again")
	}
	for _, has := range []string{"mkfs.ext4 -q -F", "mkswap", "mkfs.xfs -q -f -L other -m uuid=11111111-2222-3333-4444-555555555555"} {
		args := append(strings.Fields(has), disk.Path)
		if output, err := exec.CommandContext(rig.Context(t), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, output)
		}
		before := signature(t, disk.Path)
		_, err := start()
		if isXFS := args[0] == "mkfs.xfs"; (err == nil) != isXFS {
			t.Errorf("with %s it ends with %v", has, err)
		}
		if after := signature(t, disk.Path); after != before {
			t.Errorf("with %s the disk had %q and has %q", has, before, after)
		}
	}
}

// signature is what blkid finds on a disk.
func signature(t *testing.T, path string) string {
	t.Helper()
	output, err := exec.CommandContext(context.WithoutCancel(t.Context()), "blkid", "-p", path).Output()
	rig.Must(t, err)
	return string(output)
}
