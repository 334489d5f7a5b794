package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/doctor"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// specimen is something left over.
type specimen struct {
	// plant leaves it. The plugin runs. It returns what is found of it, and what puts
	// the node in order where doctor does not.
	plant func(t *testing.T, w *ward) (subject string, restore func(*testing.T))
	// check is what finds it, and stays says that --fix must leave it.
	check doctor.Check
	stays bool
	// remedy is a part of what doctor says to do about one that stays.
	remedy string
	// twice says that it shows at two places: what is mounted on a target, kubelet's own
	// mount of that shows too.
	twice bool
	// also are checks that find what was hidden by it, once it is mended.
	also []doctor.Check
	// alone are those that only a doctor without a plugin finds then: one with a plugin
	// has given the device up.
	alone []doctor.Check
	// detached says that the subject is a loop device, which has to be gone.
	detached bool
	// healed checks that it is gone, or still there, by other means; nil where nothing is
	// left to check.
	healed func(t *testing.T, w *ward, subject string)
}

var specimens = map[string]specimen{
	"published for a pod that is gone": {
		check: doctor.OrphanPublish,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			p := w.admit(t, "files", "orphan", "")
			p.publish(t, false)
			w.forgetPod(t, p)
			p.age(t)
			return p.target, p.leave
		},
		healed: func(t *testing.T, w *ward, subject string) {
			wantNothingAt(t, subject)
			wantNothingAt(t, filepath.Join(w.kubeletDir, "plugins/kubernetes.io/csi/volumeDevices/pv-orphan/dev/uid-orphan"))
		},
	},
	"published read-only for a pod that is gone, and nothing noted": {
		check: doctor.OrphanPublish, also: []doctor.Check{doctor.OrphanStage}, alone: []doctor.Check{doctor.StaleLoop},
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			p := w.admit(t, "files", "orphan-view", "")
			p.publish(t, true)
			w.forgetPod(t, p)
			rig.Must(t, os.RemoveAll(filepath.Dir(p.note)))
			p.age(t)
			return p.target, p.leave
		},
		healed: func(t *testing.T, _ *ward, subject string) { wantNothingAt(t, subject) },
	},
	"published for a pod that is gone, and open": {
		check: doctor.OrphanPublish, stays: true, remedy: "crictl ps",
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			p := w.admit(t, "files", "orphan-open", "")
			p.publish(t, false)
			held, err := os.Open(p.target)
			rig.Must(t, err)
			w.forgetPod(t, p)
			p.age(t)
			return p.target, func(t *testing.T) { held.Close(); p.leave(t) }
		},
		healed: func(t *testing.T, _ *ward, subject string) {
			if info, err := linux.StatPath(subject); err != nil || !info.MountRoot {
				t.Errorf("what is in use was unmounted: %+v, %v", info, err)
			}
		},
	},
	"mounted twice": {
		check: doctor.StackedMounts, twice: true,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			p := w.admit(t, "files", "stacked", "")
			p.publish(t, false)
			rig.Must(t, unix.Mount(p.target, p.target, "", unix.MS_BIND, ""))
			return p.target, p.leave
		},
		healed: func(t *testing.T, _ *ward, subject string) { wantMounts(t, subject, 1) },
	},
	"another device mounted over it": {
		check: doctor.StackedMounts, twice: true, stays: true, remedy: "delete the pod",
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			p := w.admit(t, "files", "covered", "")
			p.publish(t, false)
			rig.Must(t, unix.Mount(rig.NewDisk(t, rig.MiB).Path, p.target, "", unix.MS_BIND, ""))
			return p.target, func(t *testing.T) {
				rig.Must(t, unix.Unmount(p.target, 0))
				p.leave(t)
			}
		},
		healed: func(t *testing.T, _ *ward, subject string) { wantMounts(t, subject, 2) },
	},
	"loop device of a deleted volume": {
		check: doctor.StaleLoop,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			dir := filepath.Join(w.files, "work/gone-123/entry")
			rig.Must(t, os.MkdirAll(dir, 0o700))
			file := filepath.Join(dir, "data")
			rig.Must(t, os.WriteFile(file, make([]byte, rig.MiB), 0o600))
			loop := plantLoop(t, file, "rawblock:files/deleted")
			rig.Must(t, os.RemoveAll(filepath.Dir(dir)))
			return loop, done
		},
		detached: true,
	},
	"loop device of a volume that is not staged": {
		check: doctor.StaleLoop,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			p := w.admit(t, "files", "idle", "")
			loop := plantLoop(t, filepath.Join(w.files, "volumes/idle/data"), "rawblock:files/idle")
			return loop, func(t *testing.T) { rig.Must(t, os.RemoveAll(filepath.Dir(filepath.Dir(p.note)))) }
		},
		detached: true,
		healed: func(t *testing.T, w *ward, _ string) {
			if info, err := os.Stat(filepath.Join(w.files, "volumes/idle/data")); err != nil || info.Size() != 4*rig.MiB {
				t.Errorf("the file of the volume is %v, %v", info, err)
			}
		},
	},
	"read-only view that is mounted nowhere": {
		check: doctor.StaleView,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			p := w.admit(t, "disks", "view", "")
			rig.Must(t, p.Stage(rig.Context(t)))
			rig.Must(t, p.PublishReadOnly(rig.Context(t), p.target))
			info, err := linux.StatPath(p.target)
			rig.Must(t, err)
			rig.Must(t, unix.Unmount(p.target, 0))
			return linux.LoopPath(info.Device.Minor), p.leave
		},
		detached: true,
	},
	"lock without its mount": {
		check: doctor.StaleLock,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			p := w.admit(t, "disks", "locked", "")
			p.publish(t, false)
			rig.Must(t, unix.Unmount(p.mapping, unix.MNT_DETACH))
			rig.Must(t, os.Remove(p.mapping))
			return p.lock, p.leave
		},
		detached: true,
	},
	"file deleted under its device": {
		check: doctor.BackingDeleted, stays: true, remedy: "dd if=",
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			p := w.admit(t, "files", "lost", "")
			p.publish(t, false)
			rig.WriteAt(t, p.target, "the only copy", 4096)
			info, err := linux.StatPath(p.target)
			rig.Must(t, err)
			rig.Must(t, os.RemoveAll(filepath.Join(w.files, "volumes/lost")))
			path := linux.LoopPath(info.Device.Minor)
			return path, func(t *testing.T) {
				p.leave(t)
				loops, err := sysfs.LoopDevices()
				rig.Must(t, err)
				for _, loop := range loops {
					if loop.Path == path {
						rig.Must(t, sysfs.DetachLoop(loop))
					}
				}
			}
		},
		healed: func(t *testing.T, _ *ward, subject string) {
			if got := rig.ReadAt(t, subject, 13, 4096); got != "the only copy" {
				t.Errorf("the data is %q", got)
			}
		},
	},
	"staged, and its device has gone": {
		check: doctor.StageWithoutDevice,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			gone := rig.NewDisk(t, rig.MiB)
			p := w.admit(t, "", "gone", gone.Path)
			rig.Must(t, p.Stage(rig.Context(t)))
			gone.Pull(t)
			return p.ID, p.leave
		},
		healed: wantNoRecord,
	},
	"published, and its device has gone": {
		check: doctor.StageWithoutDevice, stays: true, remedy: "delete the pods",
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			gone := rig.NewLoop(t, rig.MiB, 512)
			p := w.admit(t, "", "gone-published", gone.Path)
			rig.Must(t, p.Stage(rig.Context(t)))
			rig.Must(t, p.Publish(rig.Context(t), p.target))
			gone.Pull(t)
			return p.ID, p.leave
		},
		healed: wantRecord,
	},
	"staged, and kubelet does not know it": {
		check: doctor.OrphanStage, alone: []doctor.Check{doctor.StaleLoop},
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			p := w.admit(t, "files", "forgotten", "")
			rig.Must(t, p.Stage(rig.Context(t)))
			rig.Must(t, os.RemoveAll(filepath.Dir(filepath.Dir(p.note))))
			return p.ID, done
		},
		healed: wantNoRecord,
	},
	"record of an earlier boot": {
		check: doctor.OldRecord,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			dir := w.recordsDir("files/old@node")
			rig.Must(t, os.Mkdir(dir, 0o700))
			rig.Must(t, os.Symlink("device=7:0 diskseq=1 mode=SINGLE_NODE_WRITER boot=another volume=files/old@node", dir+"/device"))
			return dir, done
		},
		healed: func(t *testing.T, _ *ward, subject string) { wantNothingAt(t, subject) },
	},
	"record that cannot be read": {
		check: doctor.DamagedRecord, stays: true, remedy: "rm -r ",
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			dir := w.recordsDir("damaged")
			rig.Must(t, os.Mkdir(dir, 0o700))
			rig.Must(t, os.Symlink("device=7:0 diskseq=", dir+"/device"))
			return dir, func(t *testing.T) { rig.Must(t, os.RemoveAll(dir)) }
		},
		healed: func(t *testing.T, _ *ward, subject string) {
			if _, err := os.Readlink(subject + "/device"); err != nil {
				t.Error(err)
			}
		},
	},
	"record of an attachment that cannot be read": {
		check: doctor.DamagedRecord, stays: true, remedy: "rm ",
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			dir := filepath.Join(w.stateDir, "attachments")
			rig.Must(t, os.MkdirAll(dir, 0o700))
			file := filepath.Join(dir, "damaged1.json")
			rig.Must(t, os.WriteFile(file, []byte(`{"id":`), 0o600))
			return file, func(t *testing.T) { rig.Must(t, os.Remove(file)) }
		},
		healed: func(t *testing.T, _ *ward, subject string) {
			if _, err := os.Stat(subject); err != nil {
				t.Error(err)
			}
		},
	},
	"claim without an attachment": {
		check: doctor.DeadAttachment,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			device := openDisk(t, rig.NewDisk(t, rig.MiB))
			dir := w.recordsDir("hot-attach/abcdefgh")
			rig.Must(t, os.Mkdir(dir, 0o700))
			rig.Must(t, os.Symlink(fmt.Sprintf("device=%s diskseq=%d mode=SINGLE_NODE_WRITER boot=%s volume=hot-attach/abcdefgh",
				device.Number(), device.DiskSeq(), bootID(t)), dir+"/device"))
			device.Close()
			return "abcdefgh", done
		},
		healed: func(t *testing.T, w *ward, _ string) { wantNothingAt(t, w.recordsDir("hot-attach/abcdefgh")) },
	},
	"node of an attachment on the host": {
		check: doctor.NodeOnHost,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			number, dir := rig.NewDisk(t, rig.MiB).Number(), filepath.Join(w.stateDir, "attachments")
			node := filepath.Join(t.TempDir(), "xvdb")
			rig.Must(t, unix.Mknod(node, unix.S_IFBLK|0o660, int(unix.Mkdev(number.Major, number.Minor))))
			rig.Must(t, os.MkdirAll(dir, 0o700))
			file := filepath.Join(dir, "onhost12.json")
			text := fmt.Sprintf(`{"id":"onhost12","device":"/dev/none","target":{"container":%q},"path":%q,"restore":true,"state":"Waiting","number":%q,"boot":%q}`,
				strings.Repeat("0a", 32), node, number, bootID(t))
			rig.Must(t, os.WriteFile(file, []byte(text), 0o600))
			return node, func(t *testing.T) { rig.Must(t, os.Remove(file)) }
		},
		healed: func(t *testing.T, _ *ward, subject string) { wantNothingAt(t, subject) },
	},
	"backup of the partition table damaged": {
		check: doctor.DamagedTable,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			rig.WriteAt(t, w.disk.Path, strings.Repeat("damage.", 60), 64*rig.MiB-512)
			return w.disk.Path, done
		},
		healed: wantWholeTable,
	},
	"primary of the partition table damaged": {
		check: doctor.DamagedTable,
		plant: func(t *testing.T, w *ward) (string, func(*testing.T)) {
			rig.WriteAt(t, w.disk.Path, strings.Repeat("damage.", 60), 512)
			return w.disk.Path, done
		},
		healed: wantWholeTable,
	},
}
