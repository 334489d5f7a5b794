package devcgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// runtimeContainer is a container that a runtime started in cgroup v2, as a box.
type runtimeContainer struct {
	*box
	*rig.Container
	pid int
}

func startContainer(t *testing.T, program string, devices ...oci.Device) *runtimeContainer {
	t.Helper()
	rig.RequireProgram(t, program)
	if program == "crun" {
		program = withoutLimits(t, program)
	}
	hierarchies := mounted(t, true)
	container := rig.NewContainer(t, oci.Config{CgroupV2: true, Runtime: program, Devices: devices})
	pid, err := container.PID(rig.Context(t))
	rig.Must(t, err)
	found, err := readPaths(pid)
	rig.Must(t, err)
	if !strings.Contains(found.unified, container.Name) {
		t.Fatalf("the container is in %+v", found)
	}
	return &runtimeContainer{&box{hierarchies, hierarchies.Unified + found.unified}, container, pid}
}

// asRuntime has the test binary be a runtime whose attempts to raise a limit seem to
// succeed.
const asRuntime = "RAWBLOCK_TEST_AS_RUNTIME"

// withoutLimits returns the path of a runtime that does not raise the limit of locked
// memory. crun does before it loads a program, which needs CAP_SYS_RESOURCE, which
// root in a container or a small machine may lack, and no kernel since 5.11 asks for.
func withoutLimits(t *testing.T, program string) string {
	t.Helper()
	self, err := os.Executable()
	rig.Must(t, err)
	path, err := exec.LookPath(program)
	rig.Must(t, err)
	wrapper := filepath.Join(t.TempDir(), program)
	text := fmt.Sprintf("#!/bin/sh\n%s=%s exec %s \"$@\"\n", asRuntime, path, self)
	rig.Must(t, os.WriteFile(wrapper, []byte(text), 0o700))
	return wrapper
}

// runWithoutLimits becomes the program at a path. It is told that raising the limit
// succeeded (seccomp(2), SECCOMP_RET_ERRNO with the number 0).
func runWithoutLimits(path string) error {
	const callNumber, secondArgument = 0, 24 // In struct seccomp_data.
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	passUnless := func(value uint32, over uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: over}
	}
	filter := []unix.SockFilter{
		load(callNumber), passUnless(unix.SYS_PRLIMIT64, 3),
		load(secondArgument), passUnless(unix.RLIMIT_MEMLOCK, 1),
		{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ERRNO},
		{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return err
	}
	return unix.Exec(path, append([]string{path}, os.Args[1:]...), slices.DeleteFunc(os.Environ(), func(one string) bool { return strings.HasPrefix(one, asRuntime) }))
}

// decides asks all programs of the container.
func (c *runtimeContainer) decides(t *testing.T, number linux.DeviceNumber, access Access) bool {
	t.Helper()
	dir, err := os.Open(c.dir)
	rig.Must(t, err)
	defer dir.Close()
	allowed, err := programs{ledger{file: dir}}.allows(number, access)
	rig.Must(t, err)
	return allowed
}

// question is whether a process in the container has an access to a device.
type question struct {
	number linux.DeviceNumber
	access Access
}

// can answers questions. It tries them all in one process, as each takes a runtime its time.
func (c *runtimeContainer) can(t *testing.T, questions []question) (answers []bool) {
	t.Helper()
	var script strings.Builder
	for _, one := range questions {
		node := fmt.Sprintf("/dev/block-%d-%d", one.number.Major, one.number.Minor)
		try := map[Access]string{
			Read: "exec 3<" + node, Write: "exec 3>" + node, Read | Write: "exec 3<>" + node,
			Mknod: fmt.Sprintf("mknod %s-m b %d %d && rm %s-m", node, one.number.Major, one.number.Minor, node),
		}[one.access]
		fmt.Fprintf(&script, "if said=$( (%s) 2>&1 ); then echo yes; else echo \"no: $said\"; fi\n", try)
	}
	output, err := c.Exec(rig.Context(t), "sh", "-c", script.String())
	rig.Must(t, err)
	for line := range strings.SplitSeq(output, "\n") {
		if line != "yes" && !strings.Contains(line, "Operation not permitted") {
			t.Fatal(output)
		}
		answers = append(answers, line == "yes")
	}
	if len(answers) != len(questions) {
		t.Fatalf("%d answers to %d questions: %s", len(answers), len(questions), output)
	}
	return answers
}

// What is read from the programs that runtimes attach is what happens, before, while
// and after something is granted.
func TestProgramsOfRuntimes(t *testing.T) {
	for _, program := range []string{"runc", "crun"} {
		t.Run(program, func(t *testing.T) {
			reads, writes, all, none := rig.NewDisk(t, rig.MiB), rig.NewDisk(t, rig.MiB), rig.NewDisk(t, rig.MiB), rig.NewDisk(t, rig.MiB)
			var own []oci.Device
			for _, one := range []struct {
				disk   *rig.Disk
				access string
			}{{reads, "r"}, {writes, "wm"}, {all, "rwm"}} {
				device, err := oci.DeviceAt(one.disk.Path, fmt.Sprintf("/dev/block-%d-%d", one.disk.Number().Major, one.disk.Number().Minor))
				rig.Must(t, err)
				device.Access = one.access
				own = append(own, device)
			}
			container := startContainer(t, program, own...)
			container.Run(t, "mknod", fmt.Sprintf("/dev/block-%d-%d", none.Number().Major, none.Number().Minor), "b", fmt.Sprint(none.Number().Major), fmt.Sprint(none.Number().Minor))
			disks := []*rig.Disk{reads, writes, all, none}
			var questions []question
			for _, disk := range disks {
				for _, access := range []Access{Read, Write, Read | Write, Mknod} {
					questions = append(questions, question{disk.Number(), access})
				}
			}
			compare := func(when string) []bool {
				answers := container.can(t, questions)
				for i, one := range questions {
					if said := container.decides(t, one.number, one.access); said != answers[i] {
						t.Errorf("%s: device %s for %s: %t is said and %t is so", when, one.number, one.access, said, answers[i])
					}
				}
				return answers
			}
			answers, before := compare("before"), container.state(t)
			if len(container.programs(t)) == 0 || slices.Contains(answers[12:15], true) || !slices.Contains(answers[8:11], true) {
				t.Errorf("the answers are %v", answers)
			}
			cgroup := openAs(t, container.Hierarchies, container.pid, "")
			for _, disk := range []*rig.Disk{none, reads} {
				rig.Must(t, cgroup.Allow(context.Background(), disk.Number(), Read|Write))
				compare("with a grant")
			}
			container.Run(t, "sh", "-ec", "echo x >/dev/null; head -c 1 /dev/zero >/dev/null")
			for _, disk := range []*rig.Disk{none, reads} {
				take(t, cgroup, disk.Number())
			}
			container.wantState(t, before)
			if again := compare("after"); !slices.Equal(answers, again) {
				t.Errorf("the answers were %v, and are %v", answers, again)
			}
		})
	}
}
