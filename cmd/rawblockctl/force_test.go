package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// The command of the page takes a device from a process that has it open. It runs in a
// guest machine.
func TestVMForceOfThePage(t *testing.T) {
	machine.Require(t)
	s := &scene{ward: emptyWard(t)}
	user := s.admit(t, "", "victim", "/dev/mapper/"+s.mapping(t))
	rig.Must(t, user.Stage(rig.Context(t)))
	attached := s.attach(t, user, false)
	held, err := os.OpenFile(fmt.Sprintf("/proc/%d/root%s", attached.PID, attached.Path), os.O_WRONLY|unix.O_DSYNC, 0)
	rig.Must(t, err)
	defer held.Close()
	_, err = held.WriteAt([]byte("before"), 0)
	rig.Must(t, err)
	if code, shown, _ := s.ctl(t, "detach", attached.ID); code != exitInUse {
		t.Fatalf("without force it ends with %d:\n%s", code, shown)
	}

	command := rig.Replace(t, rig.Commands(t, "hot-attach.md", "TestVMForceOfThePage")[0], "rawblockctl ", "", " ID ", " "+attached.ID+" ", "VOLUME", user.ID)
	if code, shown, said := s.ctl(t, strings.Fields(command)...); code != exitDone {
		t.Fatalf("%s ended with %d:\n%s%s", command, code, shown, said)
	}
	if _, err := held.WriteAt([]byte("later"), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("who holds the device writes: %v", err)
	}
	if _, shown, _ := s.ctl(t, "list"); strings.Contains(shown, attached.ID) {
		t.Errorf("it is still attached:\n%s", shown)
	}
	rig.Must(t, held.Close())
	rig.Must(t, user.Unstage(rig.Context(t)))
}
