package health

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

type found = map[volume.Reason]volume.Severity

const (
	scsiDir = "host0/0:0:0:0/block/sda"
	nvmeDir = "nvme/nvme0/nvme0n1"
)

func scsi(more tree) tree {
	return device("8:0", scsiDir, tree{"device": "-> ../.."}.and(more)).and(tree{
		"devices/host0/0:0:0:0/state":     "running\n",
		"devices/host0/0:0:0:0/ioerr_cnt": "0x2f\n",
	})
}

func nvme() tree {
	return device("259:0", nvmeDir, tree{"device": "-> .."}).and(tree{"devices/nvme/nvme0/state": "live\n"})
}

// A disk with which nothing is wrong, and each fault of it that sysfs tells, until it
// is over.
func TestFaultsOfADisk(t *testing.T) {
	for name, test := range map[string]struct {
		files  tree
		number string
		fault  tree
		want   found
		words  string
	}{
		"SCSI, offline":         {scsi(nil), "8:0", tree{"devices/host0/0:0:0:0/state": "offline\n"}, found{volume.DeviceOffline: volume.Inaccessible}, "sda is offline: the kernel has given it up"},
		"SCSI, transport":       {scsi(nil), "8:0", tree{"devices/host0/0:0:0:0/state": "transport-offline\n"}, found{volume.DeviceOffline: volume.Inaccessible}, "transport-offline"},
		"SCSI, blocked":         {scsi(nil), "8:0", tree{"devices/host0/0:0:0:0/state": "blocked\n"}, found{volume.DeviceBlocked: volume.Inaccessible}, "I/O waits"},
		"SCSI, being deleted":   {scsi(nil), "8:0", tree{"devices/host0/0:0:0:0/state": "cancel\n"}, found{volume.DeviceOffline: volume.Inaccessible}, ""},
		"NVMe, dead":            {nvme(), "259:0", tree{"devices/nvme/nvme0/state": "dead\n"}, found{volume.DeviceOffline: volume.Inaccessible}, "nvme0n1 is dead"},
		"NVMe, being reset":     {nvme(), "259:0", tree{"devices/nvme/nvme0/state": "resetting\n"}, found{volume.DeviceBlocked: volume.Inaccessible}, ""},
		"read-only":             {scsi(nil), "8:0", tree{"devices/" + scsiDir + "/ro": "1\n"}, found{volume.DeviceReadOnly: volume.Degraded}, "refuses writes"},
		"smaller":               {scsi(nil), "8:0", tree{"devices/" + scsiDir + "/size": "1024\n"}, found{volume.SizeShrank: volume.DataLoss}, "has 524288 bytes, and has had 1048576"},
		"no medium":             {scsi(nil), "8:0", tree{"devices/" + scsiDir + "/size": "0\n"}, found{volume.DeviceGone: volume.Inaccessible}, "sda has gone from the node"},
		"another in its place":  {scsi(nil), "8:0", tree{"devices/" + scsiDir + "/diskseq": "10\n"}, found{volume.DeviceReplaced: volume.Inaccessible}, "another disk than the one that was staged"},
		"a fact that is broken": {scsi(nil), "8:0", tree{"devices/" + scsiDir + "/stat": "1 2 x\n"}, found{volume.CheckFailed: volume.Degraded}, "stat has 3 columns"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, test.files)
			w.want(t, test.number, nil)
			w.time = w.time.Add(time.Minute)
			before := tree{}
			for path := range test.fault {
				content, err := os.ReadFile(filepath.Join(w.root, path))
				must(t, err)
				before[path] = string(content)
			}
			w.set(t, test.fault)
			w.want(t, test.number, test.want, test.words, "(seen since 2026-11-24T03:01:00Z)")
			w.time = w.time.Add(time.Hour)
			w.want(t, test.number, test.want, "(seen since 2026-11-24T03:01:00Z)")
			w.set(t, before)
			w.want(t, test.number, nil)
			w.time = w.time.Add(time.Hour)
			w.set(t, test.fault)
			w.want(t, test.number, test.want, "(seen since 2026-11-24T05:01:00Z)")
		})
	}
}

func TestDeviceGone(t *testing.T) {
	w := newWorld(t, scsi(nil))
	w.want(t, "8:16", found{volume.DeviceGone: volume.Inaccessible}, "block device 8:16 has gone", "seen since")
}

// Who only reads does not mind a device that is read-only.
func TestReadOnlyIsNoFaultForReaders(t *testing.T) {
	w := newWorld(t, scsi(tree{"ro": "1\n"}))
	if got := w.look(t, Device{Number: linux.DeviceNumber{Major: 8}}); len(got) > 0 {
		t.Errorf("got %v", got)
	}
}

// I/O errors are told for a day after the last. SCSI's count says how many commands
// failed beside them, and nothing by itself.
func TestIOErrors(t *testing.T) {
	counter := "devices/host0/0:0:0:0/ioerr_cnt"
	w := newWorld(t, scsi(nil).and(tree{"block/sda": "-> ../devices/" + scsiDir}))
	w.want(t, "8:0", nil)
	w.time = w.time.Add(time.Minute)
	w.set(t, tree{counter: "0x31\n"})
	w.want(t, "8:0", nil)
	for _, name := range []string{"sda", "sda", "sdb", "../sda"} {
		w.noteError(ioError{name, "I/O error, READ at sector 7"})
	}
	w.want(t, "8:0", found{volume.IOErrors: volume.Degraded},
		"sda has returned I/O errors: 2 or more since 2026-11-24T03:01:00Z, the last at 2026-11-24T03:01:00Z (I/O error, READ at sector 7), and SCSI commands have failed: 2 since")
	w.time = w.time.Add(12 * time.Hour)
	w.noteError(ioError{"sda", "critical medium error, READ at sector 9"})
	w.want(t, "8:0", found{volume.IOErrors: volume.Degraded}, "3 or more since 2026-11-24T03:01:00Z, the last at 2026-11-24T15:01:00Z (critical medium error")
	w.time = w.time.Add(errorTime)
	w.want(t, "8:0", found{volume.IOErrors: volume.Degraded})
	w.time = w.time.Add(time.Minute)
	w.want(t, "8:0", nil)
	w.noteError(ioError{"sda", "again"})
	w.want(t, "8:0", found{volume.IOErrors: volume.Degraded}, "1 or more since 2026-11-25T15:02:00Z")
	w.set(t, tree{"devices/" + scsiDir + "/diskseq": "10\n"})
	if got := w.look(t, Device{Number: linux.DeviceNumber{Major: 8}}); len(got) > 0 {
		t.Errorf("errors of the disk before are told of another: %v", got)
	}
}

// Lines of the kernel's log, as it has written them.
func TestParseRecord(t *testing.T) {
	for record, want := range map[string]string{
		"3,812,9865132,-;I/O error, dev sda, sector 0 op 0x0:(READ) flags 0x800 phys_seg 1 prio class 2\n":                             "sda: I/O error, READ at sector 0",
		"3,1,1,-;blk_update_request: critical medium error, dev sdb, sector 1234 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0\n":    "sdb: critical medium error, READ at sector 1234",
		"3,1,1,-;critical space allocation error, dev nvme0n1, sector 8 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2\n DEVICE=x": "nvme0n1: critical space allocation error, WRITE at sector 8",
		"3,1,1,-;I/O error, dev cciss/c0d0, sector 8 op 0x2:(FLUSH) flags 0x800 phys_seg 1 prio class 2\n":                             "cciss/c0d0: I/O error, FLUSH at sector 8",
		"3,1,1,-;operation not supported error, dev sda, sector 8 op 0x1:(WRITE) flags 0x0 phys_seg 0 prio class 2\n":                  "",
		"3,1,1,-;critical target error, dev sda, sector 8 op 0x3:(DISCARD) flags 0x0 phys_seg 1 prio class 2\n":                        "",
		"3,1,1,-;Buffer I/O error on dev dm-0, logical block 16368, async page read\n":                                                 "",
		"11,1,1,-;I/O error, dev sda, sector 0 op 0x0:(READ) flags 0x800 phys_seg 1 prio class 2\n":                                    "", // Of the facility user.
		"x;I/O error, dev sda, sector 0 op 0x0:(READ) flags 0x800":                                                                     "",
		"": "",
	} {
		failed, ok := parseRecord(record)
		got := ""
		if ok {
			got = failed.disk + ": " + failed.text
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", record, got, want)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add("3,812,9865132,-;I/O error, dev sda, sector 0 op 0x0:(READ) flags 0x800 phys_seg 1 prio class 2\n")
	f.Fuzz(func(t *testing.T, record string) {
		if failed, ok := parseRecord(record); ok && (failed.disk == "" || strings.ContainsAny(failed.disk, " ,\n")) {
			t.Errorf("%q: %+v", record, failed)
		}
	})
}

// The real log: it is followed until the context ends.
func TestFollow(t *testing.T) {
	m := New(blockdev.NewSysfs("/sys"))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Follow(ctx) }()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Requests that are under way are a fault only where none ends for long.
func TestIOStalled(t *testing.T) {
	file := "devices/" + scsiDir + "/stat"
	w := newWorld(t, scsi(tree{"stat": stat(100, 3)}))
	w.want(t, "8:0", nil)
	w.time = w.time.Add(stallTime - time.Second)
	w.want(t, "8:0", nil)
	w.set(t, tree{file: stat(101, 3)})
	w.time = w.time.Add(time.Second)
	w.want(t, "8:0", nil)
	w.time = w.time.Add(stallTime)
	w.want(t, "8:0", found{volume.IOStalled: volume.Inaccessible}, "requests under way since 2026-11-24T03:01:00Z")
	w.set(t, tree{file: stat(104, 0)})
	w.want(t, "8:0", nil)
	w.time = w.time.Add(stallTime)
	w.set(t, tree{file: stat(104, 1)})
	w.want(t, "8:0", nil)
}

// The faults of a disk are those of its partitions, and told once.
func TestPartition(t *testing.T) {
	partition := device("8:1", scsiDir+"/sda1", tree{"partition": "1\n", "ro": "1\n"})
	delete(partition, "devices/"+scsiDir+"/sda1/diskseq")
	w := newWorld(t, scsi(tree{"ro": "1\n"}).and(partition).and(tree{"devices/host0/0:0:0:0/state": "offline\n"}))
	w.want(t, "8:1", found{volume.DeviceReadOnly: volume.Degraded, volume.DeviceOffline: volume.Inaccessible}, "sda refuses", "sda is offline")
	got := w.look(t, Device{Number: linux.DeviceNumber{Major: 8, Minor: 1}, Writable: true})
	if len(got) != 2 {
		t.Errorf("got %v", got)
	}
}

// A volume that is made in place of a larger one that was deleted has its number.
func TestSmallerPartitionIsAnother(t *testing.T) {
	dir := scsiDir + "/sda1"
	w := newWorld(t, scsi(nil).and(device("8:1", dir, tree{"partition": "1\n"})))
	w.want(t, "8:1", nil)
	w.set(t, tree{"devices/" + dir + "/size": "1024\n"})
	w.want(t, "8:1", nil)
}

// mirror is an array of two disks.
func mirror(level string, firstState, secondState string) tree {
	return device("9:0", "virtual/block/md0", tree{
		"md/level": level + "\n", "slaves/sda": "-> ../../../../" + scsiDir, "slaves/sdb": "-> ../../../../host1/0:0:0:0/block/sdb",
	}).and(scsi(nil)).and(device("8:16", "host1/0:0:0:0/block/sdb", tree{"device": "-> ../.."})).and(tree{
		"devices/host0/0:0:0:0/state": firstState + "\n", "devices/host1/0:0:0:0/state": secondState + "\n",
	})
}

// A member of an array with copies can fail, and the array goes on.
func TestMembers(t *testing.T) {
	for name, test := range map[string]struct {
		files tree
		want  volume.Severity
	}{
		"copies, one offline":    {mirror("raid1", "running", "offline"), volume.Degraded},
		"copies, both offline":   {mirror("raid1", "offline", "offline"), volume.Inaccessible},
		"no copies, one offline": {mirror("raid0", "running", "offline"), volume.Inaccessible},
	} {
		t.Run(name, func(t *testing.T) {
			newWorld(t, test.files).want(t, "9:0", found{volume.DeviceOffline: test.want})
		})
	}
	t.Run("one has gone", func(t *testing.T) {
		w := newWorld(t, mirror("raid1", "running", "running"))
		must(t, os.RemoveAll(filepath.Join(w.root, "devices/host1")))
		w.want(t, "9:0", found{volume.DeviceGone: volume.Degraded}, "sdb has gone from the node")
	})
}

// An NVMe disk with several controllers works as long as one of them does.
func TestNVMePaths(t *testing.T) {
	paths := func(first, second string) tree {
		return device("259:0", "virtual/nvme-subsystem/nvme-subsys0/nvme0n1", tree{"device": "-> .."}).and(tree{
			"devices/virtual/nvme-subsystem/nvme-subsys0/nvme0": "-> ../../../nvme/nvme0",
			"devices/virtual/nvme-subsystem/nvme-subsys0/nvme1": "-> ../../../nvme/nvme1",
			"devices/nvme/nvme0/state":                          first + "\n",
			"devices/nvme/nvme1/state":                          second + "\n",
		})
	}
	newWorld(t, paths("live", "live")).want(t, "259:0", nil)
	newWorld(t, paths("live", "dead")).want(t, "259:0", found{volume.DeviceOffline: volume.Degraded}, "is live, dead")
	newWorld(t, paths("connecting", "dead")).want(t, "259:0", found{volume.DeviceBlocked: volume.Inaccessible})
	newWorld(t, paths("dead", "dead")).want(t, "259:0", found{volume.DeviceOffline: volume.Inaccessible})
}

func TestSMART(t *testing.T) {
	w := newWorld(t, nvme())
	w.log[smartUsed] = 99
	w.want(t, "259:0", nil)
	w.log = make([]byte, smartLength)
	w.log[smartWarning], w.log[smartUsed] = 0x3f, 104
	w.want(t, "259:0", nil) // The log of a moment ago is still good.
	w.time = w.time.Add(smartAge)
	w.want(t, "259:0", found{
		volume.NVMeSpareLow: volume.Degraded, volume.NVMeTemperature: volume.Degraded, volume.NVMeUnreliable: volume.Degraded,
		volume.NVMeReadOnly: volume.Degraded, volume.NVMeUnprotected: volume.Degraded, volume.NVMeWornOut: volume.Degraded,
	}, "nvme0n1 has used 104 % of the life", "(seen since 2026-11-24T03:00:30Z)")
	w.log = make([]byte, smartLength)
	binary.LittleEndian.PutUint64(w.log[smartMedia:], 7)
	w.time = w.time.Add(smartAge)
	w.want(t, "259:0", found{volume.NVMeMediaErrors: volume.Degraded}, "7 since 2026-11-24T03:01:00Z at the latest")
}

// A controller that has no such log, that cannot be asked, or that must not be.
func TestNoSMART(t *testing.T) {
	w := newWorld(t, nvme())
	w.smart = func(string) ([]byte, error) { return nil, &linux.NVMeError{Status: 0x4109} }
	w.want(t, "259:0", nil)
	w.time = w.time.Add(smartAge)
	w.smart = func(string) ([]byte, error) { return make([]byte, 8), nil }
	w.want(t, "259:0", found{volume.CheckFailed: volume.Degraded}, "the SMART log of nvme0 has 8 bytes")
	w.time = w.time.Add(smartAge)
	w.smart = func(string) ([]byte, error) { return nil, errors.New("broken") }
	w.want(t, "259:0", found{volume.CheckFailed: volume.Degraded}, "broken")
	w.set(t, tree{"devices/nvme/nvme0/state": "resetting\n"})
	w.time = w.time.Add(smartAge)
	w.smart = func(string) ([]byte, error) {
		t.Error("a controller that is being reset was asked")
		return nil, nil
	}
	w.want(t, "259:0", found{volume.DeviceBlocked: volume.Inaccessible})
}

// A loop device, whose file has been deleted or cut.
func TestLoop(t *testing.T) {
	file := filepath.Join(t.TempDir(), "data")
	must(t, os.WriteFile(file, make([]byte, 2048*512), 0o600))
	loop := func(path string) *world {
		w := newWorld(t, device("7:0", "virtual/block/loop0", tree{"loop/backing_file": path + "\n"}))
		info, err := linux.StatPath(filepath.Dir(file))
		must(t, err)
		number := info.ID.Device.String()
		if info.ID.Device.Major != 0 {
			w.set(t, device(number, "below", nil))
		}
		return w
	}
	loop(file).want(t, "7:0", nil)
	// A name like that of a deleted file is only a name.
	must(t, os.Link(file, file+" (deleted)"))
	loop(file+" (deleted)").want(t, "7:0", nil)
	must(t, os.Remove(file+" (deleted)"))
	loop(file+" (deleted)").want(t, "7:0", found{volume.BackingDeleted: volume.DataLoss}, "shows the file "+file+", which has been deleted")
	loop("/no/such/place").want(t, "7:0", nil)
	shorter := loop(file)
	shorter.want(t, "7:0", nil)
	shorter.set(t, tree{"devices/virtual/block/loop0/size": "8\n"})
	shorter.want(t, "7:0", nil)
	must(t, os.Truncate(file, 4096))
	loop(file).want(t, "7:0", found{volume.SizeShrank: volume.DataLoss}, "shows the file "+file+", which has 4096 bytes, and has had 1048576")
	must(t, os.Truncate(file, 2048*512))
	refreshed := loop(file)
	refreshed.want(t, "7:0", nil)
	must(t, os.Truncate(file, 4096))
	refreshed.set(t, tree{"devices/virtual/block/loop0/size": "8\n"})
	refreshed.want(t, "7:0", found{volume.SizeShrank: volume.DataLoss}, "which has 4096 bytes, and has had 1048576")
	unseen := loop("/no/such/place")
	unseen.want(t, "7:0", nil)
	unseen.set(t, tree{"devices/virtual/block/loop0/size": "8\n"})
	unseen.want(t, "7:0", found{volume.SizeShrank: volume.DataLoss}, "has 4096 bytes, and has had 1048576")
}

// What is not looked at any more is forgotten.
func TestForgetting(t *testing.T) {
	w := newWorld(t, scsi(nil).and(nvme()))
	w.want(t, "8:0", nil)
	w.time = w.time.Add(forgetTime + time.Second)
	w.want(t, "259:0", nil)
	if len(w.histories) != 1 {
		t.Errorf("%d devices are remembered", len(w.histories))
	}
}

// The messages are for people: they say what to do.
func TestMessagesNameTheDevice(t *testing.T) {
	w := newWorld(t, scsi(tree{"ro": "1\n"}))
	for _, condition := range w.look(t, Device{Number: linux.DeviceNumber{Major: 8}, Writable: true}) {
		if !strings.HasPrefix(condition.Message, "sda ") {
			t.Errorf("%s: %s", condition.Reason, condition.Message)
		}
	}
}
