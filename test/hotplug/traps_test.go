package hotplug

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// What lies in a container may be laid there for the plugin, which has every right
// on the host. None of it leads anywhere.
func TestTraps(t *testing.T) {
	outside := t.TempDir() // A directory of the host that the container does not have.
	for name, trap := range map[string]struct {
		// prepare is run by the container's shell.
		prepare, path string
		want          error
		says          string
	}{
		"link to a directory of the host": {"ln -s " + outside + " /dev/trap", "/dev/trap/xvdb", volume.ErrPrecondition, "symbolic link on the way"},
		"link to the container's own":     {"mkdir /dev/real && ln -s real /dev/trap", "/dev/trap/xvdb", volume.ErrPrecondition, "symbolic link on the way"},
		"link upwards":                    {"ln -s ../../../../../.." + outside + " /dev/trap", "/dev/trap/xvdb", volume.ErrPrecondition, "symbolic link on the way"},
		"link in a name":                  {"ln -s " + outside + "/xvdb /dev/xvdb", "/dev/xvdb", volume.ErrPrecondition, "symbolic link at /dev/xvdb"},
		"magic link":                      {"true", "/proc/self/root/xvdb", volume.ErrPrecondition, "/proc/self/root/xvdb"},
		"magic link of a descriptor":      {"true", "/proc/1/cwd/xvdb", volume.ErrPrecondition, "symbolic link on the way"},
		"dots":                            {"true", "/dev/../../.." + outside + "/xvdb", volume.ErrInvalid, "plain absolute path"},
		"file":                            {"echo precious >/dev/xvdb", "/dev/xvdb", volume.ErrPrecondition, "regular file at /dev/xvdb"},
		"directory":                       {"mkdir /dev/xvdb", "/dev/xvdb", volume.ErrPrecondition, "directory at /dev/xvdb"},
		"node of another device":          {"mknod /dev/xvdb b 8 0", "/dev/xvdb", volume.ErrPrecondition, "block device at /dev/xvdb"},
		"node of the container's":         {"true", "/dev/null", volume.ErrPrecondition, "character device at /dev/null"},
		"no directory":                    {"true", "/no/such/directory/xvdb", volume.ErrPrecondition, "has no directory /no/such/directory"},
		"file in the place of it":         {"true", "/bin/busybox/xvdb", volume.ErrPrecondition, "has no directory /bin/busybox"},
		"kernel's filesystem":             {"true", "/proc/xvdb", volume.ErrPrecondition, "no node can be made at /proc/xvdb"},
	} {
		t.Run(name, func(t *testing.T) {
			node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, oci.Config{})
			container.Run(t, "sh", "-c", trap.prepare)
			before, devices := rules(t, container), list(t, "/dev")
			_, err := node.Attach(rig.Context(t), container.request(disk, trap.path))
			wantErrorOf(t, err, trap.want, trap.says)
			wantRules(t, container, before)
			wantNoAttachment(t, node)
			if left := list(t, outside); left != "" {
				t.Errorf("on the host there is now %s", left)
			}
			if now := list(t, "/dev"); now != devices {
				t.Errorf("the host's /dev was %s, and is %s", devices, now)
			}
		})
	}
}

// list names what is in a directory of the host, other than loop devices, which other
// tests make.
func list(t testing.TB, path string) string {
	t.Helper()
	entries, err := os.ReadDir(path)
	rig.Must(t, err)
	var names []string
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), "loop") {
			names = append(names, entry.Name())
		}
	}
	return strings.Join(names, " ")
}

// A container that has a directory of the host's /dev has all devices already, and no
// node is made for it there.
func TestHostDev(t *testing.T) {
	node, disk := newNode(t), rig.NewDisk(t, rig.MiB)
	container := startContainer(t, oci.Config{Binds: []string{"/dev/shm", "/dev/pts"}})
	devices := list(t, "/dev")
	own := startContainer(t, oci.Config{Dev: oci.DevOfHost})
	_, err := node.Attach(rig.Context(t), own.request(disk, "/dev/xvdb"))
	wantErrorOf(t, err, volume.ErrPrecondition, "is the host's own /dev")
	_, err = node.Attach(rig.Context(t), container.request(disk, "/dev/pts/xvdb"))
	if err == nil {
		t.Error("a node was made in a filesystem of terminals")
	}
	if now := list(t, "/dev"); now != devices {
		t.Errorf("the host's /dev was %s, and is %s", devices, now)
	}
	wantNoAttachment(t, node)
}

// A directory that is a link to the host half of the time: no attachment ends outside,
// whichever it is at the moment.
func TestSwappedDir(t *testing.T) {
	node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, oci.Config{})
	ctx, outside := rig.Context(t), t.TempDir()
	container.Run(t, "sh", "-c", "mkdir /dev/a && ln -s "+outside+" /dev/b && mv /dev/a /dev/trap")
	swapping := container.Command(ctx, "sh", "-c", "while mv /dev/trap /dev/a; mv /dev/b /dev/trap; mv /dev/trap /dev/b; mv /dev/a /dev/trap; do :; done")
	rig.Must(t, swapping.Start())
	t.Cleanup(func() { swapping.Process.Kill(); swapping.Wait() })
	made := 0
	for range 100 {
		attached, err := node.Attach(ctx, container.request(disk, "/dev/trap/xvdb"))
		if err == nil {
			made++
			_, err = node.Detach(ctx, attached.ID)
			rig.Must(t, err)
		}
		if left := list(t, outside); left != "" {
			t.Fatalf("on the host there is %s", left)
		}
	}
	t.Logf("%d of 100 attachments were made", made)
	wantNoAttachment(t, node)
}

// A name that somebody in the container keeps replacing: what is there in the end is
// the device or nothing of ours, and nothing else gets its owner and mode.
func TestSwappedNode(t *testing.T) {
	node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, oci.Config{UID: 1000})
	ctx := rig.Context(t)
	precious := filepath.Join(container.Rootfs, "precious")
	rig.Must(t, os.WriteFile(precious, nil, 0o600))
	rig.Must(t, os.Chmod(filepath.Join(container.Rootfs, "mnt"), 0o777))
	swapping := container.Command(ctx, "sh", "-c", "cd /mnt; while :; do ln -s /precious decoy; mv -f decoy xvdb; rm -f xvdb; done")
	rig.Must(t, swapping.Start())
	t.Cleanup(func() { swapping.Process.Kill(); swapping.Wait() })
	for range 100 {
		if attached, err := node.Attach(ctx, container.request(disk, "/mnt/xvdb")); err == nil {
			_, err = node.Detach(ctx, attached.ID)
			rig.Must(t, err)
		}
	}
	info, err := os.Stat(precious)
	rig.Must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("another file has the mode %v now", info.Mode())
	}
	wantNoAttachment(t, node)
}

func TestNotAContainer(t *testing.T) {
	node, disk := newNode(t), rig.NewDisk(t, rig.MiB)
	for name, test := range map[string]struct {
		target hotplug.Target
		want   error
		says   string
	}{
		"process of the host":     {hotplug.Target{PID: os.Getpid()}, volume.ErrPrecondition, "is in no container"},
		"no such process":         {hotplug.Target{PID: 1 << 22}, volume.ErrNotFound, "process 4194304"},
		"no such container":       {hotplug.Target{Container: strings.Repeat("0a", 32)}, volume.ErrNotFound, "runs on this node"},
		"too little of an ID":     {hotplug.Target{Container: "0a0a"}, volume.ErrInvalid, "at least 12"},
		"a name and no ID":        {hotplug.Target{Container: "db-postgres-1"}, volume.ErrInvalid, "hexadecimal digits"},
		"a pod without a runtime": {hotplug.Target{Pod: &hotplug.Pod{Namespace: "default", Name: "db-0"}}, volume.ErrPrecondition, "hotplug.criSocket"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := node.Attach(rig.Context(t), hotplug.Request{Device: disk.Path, Target: test.target, Path: "/dev/xvdb"})
			wantErrorOf(t, err, test.want, test.says)
		})
	}
}
