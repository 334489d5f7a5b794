package vm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

// The pool of logical volumes, with the real lvm: what every pool promises.
func TestVMLVMContract(t *testing.T) {
	t.Parallel()
	for _, suite := range []string{"thick", "thin"} {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			// Without udev, which here makes lvm several times as slow.
			guest := vm.Start(t, vm.Config{})
			guest.Test(t, "test/vm/lvm", "-test.run=^TestContract$/^"+suite+"$")
		})
	}
}

// What can befall a volume group and a thin pool.
func TestVMLVMFaults(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Udev: true})
	guest.Test(t, "test/vm/lvm", "-test.skip=^(TestContract|TestKilledAfterEachStep|TestAttack.*)$")
}

// A tenant writes a volume group of the pool's name into what he has.
func TestVMAttackLVM(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{Udev: true})
	guest.Test(t, "test/vm/lvm", "-test.run=^TestAttack")
}

func TestVMLVMKilledAfterEachStep(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "crashpoints.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-trimpath", "-tags", "crashpoints", "-o", binary, "./lvm")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for _, kind := range []string{"thick", "thin"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			guest := vm.Start(t, vm.Config{})
			rig.Must(t, guest.Put(t.Context(), binary, "/tmp/lvm-crashpoints.test"))
			guest.Test(t, "test/vm/lvm", "-test.run=^TestKilledAfterEachStep$/^"+kind+"$")
		})
	}
}

// csi-sanity, with pools of logical volumes.
func TestVMLVMSanity(t *testing.T) {
	t.Parallel()
	guest := vm.Start(t, vm.Config{})
	guest.TestWith(t, []string{"TMPDIR=/var/tmp"}, "test/sanity")
}
