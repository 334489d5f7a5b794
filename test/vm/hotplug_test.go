package vm_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// hotAttachInGuest are the tests of hot attach that say something new on a kernel with
// cgroup v2 alone and with disks that have majors of their own. The others, and why not:
//
//	with cgroup v1     the guest has none
//	TestCRI            it has no containerd, and what they are about is not the kernel's
//	TestRace, TestSwapped, TestManyDevices, TestContainerKilled
//	                   hundreds of commands, which take 58 times as long in the guest
//	TestPlan, TestNotAContainer, TestContainerOutOfSight, TestGrantedByAnotherPlugin,
//	TestRemovedNodeIsRestored, TestEndedContainer
//	                   the kernel has no part in them
var hotAttachInGuest = []struct {
	bus   machine.Bus
	tests string
}{
	{machine.SCSI, "^TestMatrix$/./^v2$"},
	{machine.SCSI, "^TestHeld$/./^v2$|^Test(HeldOnTheHost|HeldByTheKernel|Shared|Claims|Volume|Traps|HostDev)$"},
	{machine.SCSI, "^Test(LostGrantIsRestored|NoRecordNoGrant|AnotherDiskHasTheNumber|OwnRulesStay|Privileged)$/^v2$"},
	{machine.SCSI, "^TestKilledBetweenAnyTwoSteps$/^v2$"},
	{machine.NVMe, "^TestMatrix$/^(usual|user_namespace|not_root)$/^v2$"},
	{machine.Virtio, "^TestMatrix$/^(usual|user_namespace|not_root)$/^v2$"},
}

// plainLocale keeps a shell from warning that the guest has no other.
const plainLocale = "LC_ALL=C"

// Hot attach where cgroup v2 is all there is, with disks of each bus.
func TestVMHotAttach(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{})
	putHolder(t, guest)
	rig.Must(t, guest.Put(t.Context(), rig.Build(t, "crashpoints"), rig.ProgramInGuest("crashpoints")))
	for _, run := range hotAttachInGuest {
		t.Run(string(run.bus)+" "+run.tests, func(t *testing.T) {
			guest.TestWith(t, []string{fmt.Sprintf("%s=%s", rig.BusVariable, run.bus), plainLocale}, "test/hotplug", "-test.run="+run.tests)
		})
	}
}

// Disks that are pulled out while a container has them open.
func TestVMHotAttachPulled(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{})
	putHolder(t, guest)
	guest.TestWith(t, []string{plainLocale}, "test/hotplug", "-test.run=^TestVM(Pulled|Another)")
}

// Grants in the units of a systemd that is the first process of the machine. Names that
// are escaped, and policies that make the same program as another, are left to the
// systemd in namespaces that test/systemd starts elsewhere.
func TestVMHotAttachSystemd(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Systemd: true})
	guest.TestWith(t, []string{plainLocale}, "test/systemd",
		"-test.run=^TestSystemd(GrantInContainerOfRunc|GrantBehindItsBackIsLost|CannotBeReached|UnitWithoutRules|BesideAnotherProgram|UnitOfAContainer)$|^TestSystemdGrantInUnit$/^(service|scope|own_rule)")
}

// nodesByLibrary has dmsetup make the nodes of mappings itself: in these guests no udev
// runs, which would look into each new device, and be one of its holders for a moment.
const nodesByLibrary = "DM_DISABLE_UDEV=1"

// Devices of device-mapper, taken from programs that have them open.
func TestVMRevoke(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{})
	guest.TestWith(t, []string{nodesByLibrary}, "test/vm/devmapper", "-test.skip=HungDisk$")
	putHolder(t, guest)
	rig.Must(t, guest.Put(t.Context(), rig.Build(t, "crashpoints"), rig.ProgramInGuest("crashpoints")))
	guest.TestWith(t, []string{plainLocale, nodesByLibrary}, "test/hotplug", "-test.run=^TestVMRevoke", "-test.skip=HungDisk$")
}

// The same with disks that do not answer, in a machine of its own: what waits for them
// cannot be ended.
func TestVMRevokeOfAHungDisk(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{})
	guest.TestWith(t, []string{nodesByLibrary}, "test/vm/devmapper", "-test.run=HungDisk$", "-test.timeout=4m")
	putHolder(t, guest)
	guest.TestWith(t, []string{plainLocale, nodesByLibrary}, "test/hotplug", "-test.run=^TestVMRevokeOfAHungDisk$", "-test.timeout=4m")
}

// putHolder puts a program of test/hotplug into the guest.
func putHolder(t *testing.T, guest *vm.Guest) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "holder")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", program, "../hotplug/holder")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the holder: %v\n%s", err, output)
	}
	rig.Must(t, guest.Put(t.Context(), program, "/usr/local/bin/holder"))
}

// A SCSI disk that is attached read-only takes no command that writes, and one that is
// attached is taken in by no pool.
func TestVMAttackAttachedDisk(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{})
	guest.TestWith(t, []string{fmt.Sprintf("%s=%s", rig.BusVariable, machine.SCSI), plainLocale}, "test/attack", "-test.run=^TestAttack(HotAttachReadOnlyDisk|ClaimOnAnAttachedDisk)$")
}
