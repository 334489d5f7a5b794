package vm_test

import (
	"os"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/vm"
)

// What each kind of pool costs, in one machine: the figures of docs/reference/pools.md.
func BenchmarkVMPools(b *testing.B) {
	guest := vm.Start(b, vm.Config{Udev: true})
	guest.Bench(b, os.Stdout, "test/vm/bench", "1s")
}
