package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// removedDir is where a pool of files moves the file of a volume that is deleted,
// before it removes it (pkg/pool/file, doc.go).
const removedDir = "work/gone-"

// isVolumeOfOurs reports whether a loop device shows a file of a pool of this node.
func (e *examination) isVolumeOfOurs(loop blockdev.LoopDevice) bool {
	return e.volumeOf(loop) != "" || e.isBelowAPool(loop, "")
}

// isBelowAPool reports whether the path of a loop device's file is below the directory of
// a pool, and begins there with a prefix.
func (e *examination) isBelowAPool(loop blockdev.LoopDevice, prefix string) bool {
	return slices.ContainsFunc(e.survey.Pools, func(facts inspect.PoolFacts) bool {
		if facts.Directory == "" || loop.Device != (linux.DeviceNumber{}) {
			return false
		}
		dir := facts.Directory
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
		return strings.HasPrefix(loop.Backing, dir+"/"+prefix)
	})
}

// loops looks at the loop devices.
func (e *examination) loops() {
	for _, loop := range e.survey.Loops {
		switch {
		case e.isRecorded(loop.Number.Minor, views):
			e.view(loop)
		case loop.IsHold:
			e.hold(loop)
		case loop.IsView:
			e.view(loop)
		case e.isVolumeOfOurs(loop):
			e.volumeLoop(loop)
		default:
			e.lock(loop)
		}
	}
}

// volumeLoop looks at the loop device of a volume.
func (e *examination) volumeLoop(loop blockdev.LoopDevice) {
	id, used := e.stagedOn(loop.Number)
	used = used || e.mounted[loop.Number]
	f := Finding{Check: StaleLoop}
	switch {
	case loop.Deleted && e.isBelowAPool(loop, removedDir) && !used:
		f.Message = fmt.Sprintf("%s shows the file of a volume that was deleted (%s)", loop.Path, loop.Backing)
		f.Meaning = "the space of the file is not free before the device goes"
		f.Fix = "detach the loop device"
	case loop.Deleted:
		e.add(deletedBacking(loop, id))
		return
	case used:
		return
	default:
		if id = e.volumeOf(loop); id == "" {
			return // No pool of this node has such a file: it is for somebody else to say.
		}
		if e.isAttachedAs(id) || len(e.foreignHolders(loop.Number)) > 0 {
			return
		}
		f.Message = fmt.Sprintf("%s is the device of volume %s, which is not staged", loop.Path, id)
		f.Meaning = "it does no harm: staging the volume finds it again; but nobody takes it away"
		f.Fix = "detach the loop device; the file of the volume stays"
		f.locks = []string{id}
	}
	e.detachable(loop, f)
}

// detachable adds a finding that is mended by detaching a loop device.
func (e *examination) detachable(loop blockdev.LoopDevice, f Finding) {
	f.Subject, f.Remedy = loop.Path, "rawblockctl doctor --fix"
	f.devices, f.locks = []linux.DeviceNumber{loop.Number}, append(f.locks, loop.Path)
	f.mend = func(context.Context) error { return e.Inspector.Sysfs.DetachLoop(loop) }
	e.add(f)
}

// deletedBacking tells of data that only a loop device still has.
func deletedBacking(loop blockdev.LoopDevice, volumeID string) Finding {
	of := ""
	if volumeID != "" {
		of = " of volume " + volumeID
	}
	return Finding{
		Check: BackingDeleted, Subject: loop.Path,
		Message: fmt.Sprintf("the file %s%s, which %s shows, has been deleted by somebody", loop.Backing, of, loop.Path),
		Meaning: "all its data is still there, and is lost when the device is detached or the node reboots",
		Remedy: fmt.Sprintf("stop the programs that write to it, and copy it now, with space for all of it: dd if=%s of=/PATH/TO/COPY bs=4M conv=sparse,fsync; "+
			"then delete the pods that use it, and put the copy in the place of the file", loop.Path),
	}
}

// stagedOn returns the volume that a device is staged as.
func (e *examination) stagedOn(number linux.DeviceNumber) (volumeID string, staged bool) {
	for _, record := range e.survey.Records {
		if record.IsStaged && record.Current && record.Staged.Number == number {
			return record.Staged.VolumeID, true
		}
	}
	return "", false
}

// volumeOf returns the ID of the volume whose file a loop device shows, if a pool of
// this node has it. The label says nothing: whoever has the device may set it.
func (e *examination) volumeOf(loop blockdev.LoopDevice) string {
	if e.files == nil {
		e.files = map[linux.FileID]string{}
		for _, facts := range e.survey.Pools {
			for _, info := range facts.Infos {
				file, err := linux.StatPath(filepath.Join(facts.Directory, "volumes", info.Name, "data"))
				if facts.Directory != "" && err == nil {
					e.files[file.ID] = volume.ID{Pool: facts.Name, Name: info.Name, Node: e.Inspector.Node}.String()
				}
			}
		}
	}
	return e.files[loop.File]
}

// isAttachedAs reports whether a running container has the volume.
func (e *examination) isAttachedAs(volumeID string) bool {
	for _, one := range e.survey.Attachments {
		if one.Err == nil && one.Current && one.Volume == volumeID {
			return true
		}
	}
	return false
}

func views(r publish.Record) []blockdev.LoopID { return r.Views }
func holds(r publish.Record) []blockdev.LoopID { return r.Holds }

// isRecorded reports whether a record has a loop device of that number.
func (e *examination) isRecorded(minor uint32, of func(publish.Record) []blockdev.LoopID) bool {
	isIt := func(id blockdev.LoopID) bool { return id.Minor == minor }
	return slices.ContainsFunc(e.survey.Records, func(r publish.Record) bool { return slices.ContainsFunc(of(r), isIt) })
}

// hold looks at a loop device that keeps one that is handed out from being detached.
func (e *examination) hold(loop blockdev.LoopDevice) {
	if e.isRecorded(loop.Number.Minor, holds) || !e.isOurs(loop.Device) {
		return
	}
	e.detachable(loop, Finding{
		Check:   StaleView,
		Message: fmt.Sprintf("%s holds device %s, and no record says for which volume", loop.Path, loop.Device),
		Meaning: "it keeps the device below in use: a volume cannot be deleted",
		Fix:     "detach the loop device; nobody reads or writes through it",
	})
}

// view looks at a read-only view, which is for one target. Its user may have had it show
// something else.
func (e *examination) view(loop blockdev.LoopDevice) {
	if e.mounted[loop.Number] || e.isAttachedView(loop.Number) || e.survey.KubeletErr != nil || !e.isRecorded(loop.Number.Minor, views) && !e.isOurs(loop.Device) {
		return
	}
	e.detachable(loop, Finding{
		Check:   StaleView,
		Message: fmt.Sprintf("%s is a read-only view of device %s, and is mounted at no target", loop.Path, loop.Device),
		Meaning: "it keeps the device below in use: a volume cannot be deleted, nor a partition removed",
		Fix:     "detach the loop device; nothing was ever written through it",
	})
}

// isAttachedView reports whether a running container has a loop device as its read-only view.
func (e *examination) isAttachedView(number linux.DeviceNumber) bool {
	return slices.ContainsFunc(e.survey.Attachments, func(one hotplug.Recorded) bool {
		return one.Err != nil || one.Current && one.View == number.String()
	})
}

// lock looks at a loop device that may be kubelet's lock over a device of ours, whose
// mount has gone.
func (e *examination) lock(loop blockdev.LoopDevice) {
	if loop.Device == (linux.DeviceNumber{}) || e.survey.KubeletErr != nil || e.maps[loop.Backing] || !e.isLock(loop) {
		return
	}
	e.detachable(loop, Finding{
		Check:   StaleLock,
		Message: fmt.Sprintf("%s is kubelet's lock over device %s, whose mount %s has gone", loop.Path, loop.Device, loop.Backing),
		Meaning: "kubelet does not find it again; it keeps the device in use: a volume cannot be deleted, nor a partition removed",
		Fix:     "detach the loop device; nobody reads or writes through it",
	})
}

// isLock reports whether a loop device is one that kubelet made over a volume of ours:
// it shows a device that is ours by a path that is one of kubelet's, or by none that is
// left of its mount (a mount that is gone is told as the root of itself), and not by the
// node in /dev, as somebody who knows what he does would have it.
func (e *examination) isLock(loop blockdev.LoopDevice) bool {
	if loop.Backing == "" || strings.HasPrefix(loop.Backing, "/dev/") {
		return false
	}
	if !e.isOurs(loop.Device) {
		return false
	}
	return strings.HasPrefix(loop.Backing, e.kubeletDir()) || loop.Backing == "/" || !strings.Contains(loop.Backing[1:], "/")
}

func (e *examination) kubeletDir() string {
	dir := e.Inspector.KubeletDir
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	return dir + "/"
}

// isPartitionOfOurs reports whether a device is a partition of a disk of a pool.
func (e *examination) isPartitionOfOurs(number linux.DeviceNumber) bool {
	for _, one := range e.survey.Disks {
		if !e.hasDisk(one) {
			continue
		}
		partitions, err := e.Inspector.Sysfs.Partitions(one.Number)
		if err == nil && slices.ContainsFunc(partitions, func(p blockdev.Partition) bool { return p.Number == number }) {
			return true
		}
	}
	return false
}

func (e *examination) hasDisk(one blockdev.Disk) bool {
	return slices.ContainsFunc(e.survey.Pools, func(facts inspect.PoolFacts) bool {
		return facts.Name == e.survey.Claims[one.Name].Pool
	})
}
