package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

const id1, id2 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "0123456789abcdee0123456789abcdef0123456789abcdef0123456789abcdef"

func TestContainerID(t *testing.T) {
	for text, want := range map[string]string{
		"":       "",
		"0::/\n": "",
		"0::/system.slice/docker-" + id1 + ".scope\n":                                 id1,
		"0::/docker/" + id1 + "\n":                                                    id1,
		"5:devices:/docker/" + id1 + "\n0::/\n":                                       id1,
		"5:devices:/\n1:name=systemd:/kubepods/besteffort/podabc/" + id1 + "\n":       id1,
		"0::/kubepods.slice/kubepods-podabc.slice/cri-containerd-" + id1 + ".scope\n": id1,
		"0::/kubepods.slice/kubepods-podabc.slice/crio-" + id1 + ".scope/container\n": id1,
		"0::/machine.slice/libpod-" + id1 + ".scope/container\n":                      id1,
		"0::/docker/" + id1 + "/init.scope\n":                                         id1,
		"0::/docker/" + id1 + "/kubepods/pod1/" + id2 + "\n":                          id2,
		"0::/../../kubepods/pod1/" + id1 + "\n":                                       id1,
		"0::/user.slice/session-1.scope\n":                                            "",
		"0::/docker/" + id1[:63] + "\n":                                               "",
		"0::/docker/" + id1 + "0\n":                                                   "",
		"0::/docker/" + strings.ToUpper(id1) + "\n":                                   "",
		"no cgroup at all":                                                            "",
		// Docker, rootless too, and in itself; podman; nerdctl; ECS.
		"0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + id1 + ".scope\n": id1,
		"0::/docker/" + id1 + "/docker/" + id2 + "\n":                                            id2,
		"0::/docker/" + id1 + "/init\n":                                                          id1,
		"0::/system.slice/docker-" + id1 + ".scope/docker/" + id2 + "/init.scope\n":              id2,
		"0::/libpod_parent/libpod-" + id1 + "\n":                                                 id1,
		"0::/machine.slice/libpod-" + id1 + ".scope\n":                                           id1,
		"0::/system.slice/web.service/libpod-payload-" + id1 + "\n":                              id1,
		"0::/machine.slice/libpod-conmon-" + id1 + ".scope\n":                                    "",
		"0::/docker/" + id2 + "/libpod-conmon-" + id1 + ".scope\n":                               id2,
		"0::/system.slice/nerdctl-" + id1 + ".scope\n":                                           id1,
		"4:memory:/ecs/0123/" + id1 + "\n":                                                       id1,
		// Kubernetes: containerd, CRI-O, k3s, k3d, with either driver.
		"0::/kubepods/besteffort/pod01234567-89ab-cdef-0123-456789abcdef/" + id1 + "\n":                                       id1,
		"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0123_4.slice/cri-containerd-" + id1 + ".scope\n":   id1,
		"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0123_4.slice/crio-" + id1 + ".scope\n":             id1,
		"0::/kubepods.slice/kubepods-pod0123_4.slice/crio-conmon-" + id1 + ".scope\n":                                         "",
		"0::/system.slice/containerd.service/kubepods-besteffort-pod0123_4.slice:cri-containerd:" + id1 + "\n":                id1,
		"11:devices:/system.slice/k3s.service/kubepods-pod1.slice:cri-containerd:" + id1 + "\n0::/system.slice/k3s.service\n": id1,
		"0::/docker/" + id1 + "/kubelet/kubepods/pod1/" + id2 + "\n":                                                          id2,
		"0::/kubepods/pod1/" + id1 + "/system.slice/sshd.service\n":                                                           id1,
		// Where it was removed, and a name that has an ID in it and is none.
		"0::/docker/" + id1 + " (deleted)\n": "",
		"0::/docker/a" + id1 + "\n":          "",
		"0::/docker/" + id1 + ".slice\n":     "",
		"0::/docker/" + id1 + "-init\n":      "",
	} {
		if got := containerID(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestParseStat(t *testing.T) {
	const rest = " S 7 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1000 100"
	for _, command := range []string{"sleep", "a b", ") (", "((", "))", "", "x) S 1"} {
		got, err := parseStat("42 (" + command + ")" + rest)
		if want := (stat{7, 4711}); err != nil || got != want {
			t.Errorf("%q: %+v, %v", command, got, err)
		}
	}
	for _, text := range []string{"", "42", "42 (a", "42 a)", ")(", "42 (a) S 7", "42 (a) S x" + rest[4:], "42 (a) S 7 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 x 1"} {
		if got, err := parseStat(text); err == nil {
			t.Errorf("%q is taken: %+v", text, got)
		}
	}
}

func TestParseOwners(t *testing.T) {
	const status = "Name:\tsleep\nUid:\t0\t1000\t2\t3\nGid:\t4\t2000\t6\t7\n"
	if uid, err := parseOwner(status, "Uid:"); err != nil || uid != 1000 {
		t.Errorf("uid %d, %v", uid, err)
	}
	if gid, err := parseOwner(status, "Gid:"); err != nil || gid != 2000 {
		t.Errorf("gid %d, %v", gid, err)
	}
	for _, text := range []string{"", "Uid: 1\n", "Uid: 1 x 1 1\n", "Uid: 1 -1 1 1\n"} {
		if _, err := parseOwner(text, "Uid:"); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	if root, err := parseRoot("  1 100000 10\n  0 200000 1\n"); err != nil || root != 200000 {
		t.Errorf("root is %d, %v", root, err)
	}
	if _, err := parseRoot("1 100000 10\n"); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("without root: %v", err)
	}
	for _, text := range []string{"0\n", "0 x 1\n", "0 -1 1\n"} {
		if _, err := parseRoot(text); err == nil || errors.Is(err, volume.ErrPrecondition) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestParseMapping(t *testing.T) {
	type result struct {
		file mapped
		area string
		ok   bool
	}
	for line, want := range map[string]result{
		"00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus-daemon\n": {mapped{"08:02", "173521"}, "400000-452000", true},
		"7f0000000000-7f0000001000 rw-s 00000000 00:3a 5   /dev/xvdb (deleted)\n":  {mapped{"00:3a", "5"}, "7f0000000000-7f0000001000", true},
		"00e03000-00e24000 rw-p 00000000 00:00 0           [heap]\n":               {},
		"35b1800000-35b1820000 rw-p 00000000 00:00 0\n":                            {},
		"xyz-00452000 r-xp 00000000 08:02 173521 /a\n":                             {},
		"00400000-xyz r-xp 00000000 08:02 173521 /a\n":                             {},
		"\n": {},
	} {
		file, area, ok := parseMapping(line)
		if got := (result{file, area, ok}); got != want {
			t.Errorf("%q: %+v, want %+v", line, got, want)
		}
	}
}

func FuzzParsers(f *testing.F) {
	f.Add("42 (sleep) S 7 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1000 100")
	f.Add("0::/docker/" + id1)
	f.Add("00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/dbus-daemon")
	f.Add("pos:\t0\nflags:\t0100002\n")
	f.Add("Uid:\t0\t0\t0\t0\n")
	f.Add("0 200000 65536\n")
	f.Fuzz(func(t *testing.T, text string) {
		parseStat(text)
		parseMapping(text)
		parseOwner(text, "Uid:")
		parseRoot(text)
		parseFlags(text)
		if id := containerID(text); id != "" && (len(id) != 64 || !strings.Contains(text, id)) {
			t.Errorf("%q has the ID %q", text, id)
		}
	})
}

// fixture makes a table of processes.
func fixture(t *testing.T, processes map[int]struct {
	cgroup string
	start  int
},
) Table {
	t.Helper()
	root := t.TempDir()
	for pid, process := range processes {
		dir := filepath.Join(root, fmt.Sprint(pid))
		rig.Must(t, os.Mkdir(dir, 0o755))
		rig.Must(t, os.WriteFile(dir+"/cgroup", []byte(process.cgroup), 0o600))
		rig.Must(t, os.WriteFile(dir+"/stat", fmt.Appendf(nil, "%d (x) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 %d 1", pid, process.start), 0o600))
	}
	rig.Must(t, os.Mkdir(filepath.Join(root, "self"), 0o755))
	return New(root)
}

func TestInit(t *testing.T) {
	table := fixture(t, map[int]struct {
		cgroup string
		start  int
	}{
		1: {"0::/\n", 1}, 20: {"0::/docker/" + id1 + "\n", 500}, 30: {"0::/docker/" + id1 + "/init.scope\n", 100},
		40: {"0::/docker/" + id2 + "\n", 50}, 50: {"0::/docker/" + id1 + "\n", 100},
	})
	for id, want := range map[string]int{id1: 30, id1[:16]: 30, id2: 40} {
		if pid, err := table.Init(id); err != nil || pid != want {
			t.Errorf("%s: %d, %v; want %d", id, pid, err, want)
		}
	}
	for id, want := range map[string]error{
		id1[:12]: volume.ErrInvalid, id1[:11]: volume.ErrInvalid, "": volume.ErrInvalid, "my-container-1": volume.ErrInvalid,
		"ffffffffffff": volume.ErrNotFound, id1 + "0": volume.ErrNotFound,
	} {
		if pid, err := table.Init(id); !errors.Is(err, want) {
			t.Errorf("%q: %d, %v; want %v", id, pid, err, want)
		}
	}
	if pid, err := table.InitOf(20); err != nil || pid != 30 {
		t.Errorf("of process 20: %d, %v", pid, err)
	}
	if _, err := table.InitOf(21); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("of a process that is not there: %v", err)
	}
}

// A container that has no ID is found by any of its processes.
func TestContainerWithoutID(t *testing.T) {
	container := rig.NewContainer(t, oci.Config{UID: 1000})
	ctx, table := rig.Context(t), New("/proc")
	first, err := container.PID(ctx)
	rig.Must(t, err)
	if got, err := table.InitOf(first); err != nil || got != first {
		t.Errorf("of the first process, %d: %d, %v", first, got, err)
	}
	if shares, err := table.SharesMounts(first); err != nil || shares {
		t.Errorf("it is said to have the host's mounts: %t, %v", shares, err)
	}
	if shares, err := table.SharesMounts(os.Getpid()); err != nil || !shares {
		t.Errorf("the test is said to have mounts of its own: %t, %v", shares, err)
	}
	if uid, gid, err := table.Owner(first); err != nil || uid != 1000 || gid != 1000 {
		t.Errorf("it belongs to %d:%d, %v", uid, gid, err)
	}
	if _, _, foreign, err := table.Root(first); err != nil || foreign {
		t.Errorf("it is said to have a user namespace: %t, %v", foreign, err)
	}
	start, err := table.StartTime(first)
	if err != nil || start == 0 {
		t.Errorf("it was started at %d, %v", start, err)
	}
}

func TestRootOfUserNamespace(t *testing.T) {
	rig.RequireRoot(t)
	command := exec.CommandContext(rig.Context(t), "sleep", "infinity")
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 3000, Size: 10}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 4000, Size: 10}},
	}
	rig.Must(t, command.Start())
	t.Cleanup(func() { command.Process.Kill(); command.Wait() })
	uid, gid, foreign, err := New("/proc").Root(command.Process.Pid)
	if err != nil || uid != 3000 || gid != 4000 || !foreign {
		t.Errorf("root is %d:%d, foreign %t, %v", uid, gid, foreign, err)
	}
}
