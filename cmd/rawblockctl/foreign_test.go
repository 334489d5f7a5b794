package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// foreigners are things on the node that look like leftovers, and are others'.
type foreigners struct {
	target, mapping string
	loops           []string
	view            linux.DeviceNumber
}

// settleForeigners leaves, in this order: what another driver has published for a pod
// that is gone, and kubelet's lock over it; the loop device and a read-only view of a
// volume of another plugin, whose pool has the same name; a loop device of the
// administrator's over the device of a volume of ours.
func (w *ward) settleForeigners(t *testing.T) *foreigners {
	t.Helper()
	f := &foreigners{}
	theirs := rig.NewDisk(t, rig.MiB)
	devices := filepath.Join(w.kubeletDir, "plugins/kubernetes.io/csi/volumeDevices")
	f.target, f.mapping = filepath.Join(devices, "publish/pv-theirs/uid-theirs"), filepath.Join(devices, "pv-theirs/dev/uid-theirs")
	for _, path := range []string{f.target, f.mapping} {
		rig.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		rig.Must(t, os.WriteFile(path, nil, 0o600))
		rig.Must(t, unix.Mount(theirs.Path, path, "", unix.MS_BIND, ""))
		old := time.Now().Add(-time.Hour)
		rig.Must(t, os.Chtimes(filepath.Dir(path), old, old))
	}
	rig.Must(t, os.MkdirAll(filepath.Join(devices, "pv-theirs/data"), 0o755))
	rig.Must(t, os.WriteFile(filepath.Join(devices, "pv-theirs/data/vol_data.json"), []byte(`{"driverName":"other.example.com","volumeHandle":"theirs"}`), 0o600))
	f.loops = append(f.loops, plantLoop(t, f.mapping, f.mapping))

	dir := t.TempDir()
	rig.Must(t, os.MkdirAll(dir+"/files/volumes/healthy-file", 0o700))
	data := dir + "/files/volumes/healthy-file/data"
	rig.Must(t, os.WriteFile(data, make([]byte, rig.MiB), 0o600))
	other := plantLoop(t, data, "rawblock:files/healthy-file")
	device, err := blockdev.Open(other, sysfs)
	rig.Must(t, err)
	view, err := device.View("of another plugin")
	device.Close()
	rig.Must(t, err)
	f.view = view.Number()
	view.Close()
	f.loops = append(f.loops, other, linux.LoopPath(f.view.Minor))

	info, err := linux.StatPath(w.neighbours[0].target)
	rig.Must(t, err)
	f.loops = append(f.loops, plantLoop(t, linux.LoopPath(info.Device.Minor), ""))
	t.Cleanup(func() { f.leave(t) })
	return f
}

// wantUntouched checks that all of it is there.
func (f *foreigners) wantUntouched(t *testing.T, when string) {
	t.Helper()
	wantMounts(t, f.target, 1)
	wantMounts(t, f.mapping, 1)
	loops, err := sysfs.LoopDevices()
	rig.Must(t, err)
	for _, path := range f.loops {
		there := false
		for _, loop := range loops {
			there = there || loop.Path == path
		}
		if !there {
			t.Errorf("%s: %s of somebody else has gone", when, path)
		}
	}
}

func (f *foreigners) leave(t *testing.T) {
	t.Helper()
	for i := len(f.loops) - 1; i >= 0; i-- {
		loops, err := sysfs.LoopDevices()
		rig.Must(t, err)
		for _, loop := range loops {
			if loop.Path == f.loops[i] {
				rig.Must(t, sysfs.DetachLoop(loop))
			}
		}
	}
	f.loops = nil
	for _, path := range []string{f.mapping, f.target} {
		unix.Unmount(path, 0) //nolint:errcheck // It may have gone already.
	}
}
