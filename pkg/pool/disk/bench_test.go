package disk_test

import (
	"context"
	"fmt"
	"testing"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// What a publish pays to find the device of one volume of a hundred.
func BenchmarkActivate(b *testing.B) {
	d := rig.NewDisk(b, 160*rig.MiB)
	ctx := klog.NewContext(context.Background(), klog.Logger{})
	pool, err := disk.New(ctx, "fast", match(d), sysfs)
	rig.Must(b, err)
	defer forgetPartitions(b, d.Path)
	defer pool.Close()
	rig.Must(b, untilWiped(pool))
	for i := range 100 {
		rig.Must(b, untilCreated(ctx, pool, spec(fmt.Sprint("v", i), rig.MiB)))
	}
	for b.Loop() {
		device, err := pool.Activate(ctx, "v70")
		rig.Must(b, err)
		device.Close()
	}
}
