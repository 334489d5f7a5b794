package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Loops are the loop devices over files. A file's device is known by the file
// itself, its filesystem and inode, which the kernel tells of each loop device:
// never by its number, nor by a path, at which another file may be by now.
//
// The methods may be called concurrently for different files.
type Loops struct {
	sysfs Sysfs
	mu    sync.Mutex
	// seen is where the device of a file was a moment ago. It only spares a search.
	seen map[linux.FileID]uint32
}

// NewLoops returns the loop devices of this machine.
func NewLoops(sysfs Sysfs) *Loops {
	return &Loops{sysfs: sysfs, seen: map[linux.FileID]uint32{}}
}

// LoopOptions say how a file becomes a loop device.
type LoopOptions struct {
	// Label is for whoever lists the loop devices: at most linux.MaxLoopLabel
	// bytes of it are kept.
	Label string
	// BlockSize is the logical block size in bytes.
	BlockSize uint32
}

// Attach returns the device over an open file, whose page cache it passes by
// where the filesystem can (directIO). There is one device for a file: one that
// exists already is found again and takes over the size that the file has now.
//
// Errors: volume.ErrInUse where somebody else shows the file as a device of
// another kind, or as several; volume.ErrExhausted where the kernel gives out
// no loop device.
func (l *Loops) Attach(file linux.Descriptor, options LoopOptions) (device *Device, directIO bool, err error) {
	info, err := linux.Stat(file)
	if err != nil {
		return nil, false, err
	}
	minor, found, err := l.find(file, info.ID)
	if err != nil {
		return nil, false, err
	}
	if !found {
		minor, err = attachLoop(linux.LoopConfig{Backing: file, Label: options.Label, BlockSize: options.BlockSize, DirectIO: true})
		if err != nil {
			return nil, false, fmt.Errorf("attach %s: %w", file.Name(), err)
		}
		crashpoint.Here("loop device attached")
	}
	device, err = Open(linux.LoopPath(minor), l.sysfs)
	if err != nil {
		return nil, false, err
	}
	status, err := device.adopt(info, options)
	if err != nil {
		device.Close()
		return nil, false, err
	}
	l.remember(info.ID, minor)
	return device, status.DirectIO, nil
}

// adopt verifies that the device is the one of a file, and sets back what those may have
// changed who have it open, as a pod does (docs/adr/0021-holds.md).
func (d *Device) adopt(file linux.FileInfo, options LoopOptions) (linux.LoopStatus, error) {
	status, err := linux.StatusOfLoop(d.file)
	if err != nil {
		return status, fmt.Errorf("status of %s: %w", d, err)
	}
	switch {
	case status.Backing != file.ID:
		return status, fmt.Errorf("loop device %s: another program took it away", d)
	case status.ReadOnly:
		return status, fmt.Errorf("%w: another program shows the volume's file as %s, read-only; detach it (losetup -d)", volume.ErrInUse, d)
	}
	if err := d.setBack(&status, options); err != nil {
		return status, fmt.Errorf("set back what a user of %s has changed: %w", d, err)
	}
	if d.size, err = d.presentSize(); err != nil {
		return status, err
	}
	if d.size == file.Size {
		return status, nil
	}
	return status, d.refresh(file.Size)
}

// kept is what the kernel keeps of the label.
func (o LoopOptions) kept() string { return o.Label[:min(len(o.Label), linux.MaxLoopLabel)] }

// refresh has the loop device take over the size of its file.
func (d *Device) refresh(want uint64) error {
	if err := linux.RefreshLoop(d.file); err != nil {
		return fmt.Errorf("have %s take over the size of its file: %w", d, err)
	}
	crashpoint.Here("loop device grown")
	var err error
	if d.size, err = linux.BlockSize(d.file); err != nil {
		return fmt.Errorf("size of %s: %w", d, err)
	}
	if d.size != want {
		return fmt.Errorf("%w: %s has %d bytes, but its file has %d", volume.ErrMismatch, d, d.size, want)
	}
	return nil
}

// Find opens the device over an open file, if there is one.
func (l *Loops) Find(file linux.Descriptor) (device *Device, found bool, err error) {
	device, _, err = l.open(file)
	return device, device != nil, err
}

// open opens the device over a file, nil where there is none, and returns its status.
func (l *Loops) open(file linux.Descriptor) (*Device, linux.LoopStatus, error) {
	info, err := linux.Stat(file)
	if err != nil {
		return nil, linux.LoopStatus{}, err
	}
	minor, found, err := l.find(file, info.ID)
	if err != nil || !found {
		return nil, linux.LoopStatus{}, err
	}
	device, err := Open(linux.LoopPath(minor), l.sysfs)
	if errors.Is(err, volume.ErrNotFound) {
		return nil, linux.LoopStatus{}, nil
	}
	if err != nil {
		return nil, linux.LoopStatus{}, err
	}
	status, err := linux.StatusOfLoop(device.file)
	if err != nil || status.Backing != info.ID {
		device.Close() // It has ended, and may show another file by now.
		return nil, linux.LoopStatus{}, ignoreUnset(err)
	}
	l.remember(info.ID, minor)
	return device, status, nil
}

// Detach ends the device over an open file. Where somebody has it open (inUse),
// the kernel ends it when the last one closes it; those who merely look at every
// device that changes, such as udev, are waited for.
func (l *Loops) Detach(ctx context.Context, file linux.Descriptor) (inUse bool, err error) {
	info, err := linux.Stat(file)
	if err != nil {
		return false, err
	}
	minor, found, err := l.find(file, info.ID)
	if err != nil || !found {
		return false, err
	}
	// Of a volume whose record was lost nobody else releases the hold. It comes first: once
	// the device is detached, its number can be another's.
	if err := l.sysfs.ReleaseHolds(linux.DeviceNumber{Major: linux.LoopMajor, Minor: minor}, ""); err != nil {
		return false, err
	}
	if err := clearLoop(minor, info.ID); err != nil {
		return false, fmt.Errorf("detach loop device %d: %w", minor, err)
	}
	crashpoint.Here("loop device detached")
	l.mu.Lock()
	delete(l.seen, info.ID)
	l.mu.Unlock()
	for range detachPolls {
		if inUse, err = l.sysfs.isLoopOver(minor, info.ID); err != nil || !inUse || ctx.Err() != nil {
			break
		}
		time.Sleep(detachPoll)
	}
	return inUse, err
}

// How often, and how far apart, Detach looks whether a device has ended.
const (
	detachPolls = 50
	detachPoll  = 20 * time.Millisecond
)

// clearLoop detaches a loop device if it is the one over the file.
func clearLoop(minor uint32, id linux.FileID) error {
	loop, err := openLoop(minor)
	if IsGone(err) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer loop.Close()
	status, err := linux.StatusOfLoop(loop)
	if err != nil || status.Backing != id {
		return ignoreUnset(err)
	}
	return ignoreUnset(linux.ClearLoop(loop))
}

// ignoreUnset drops the error that says that a loop device is not set up.
func ignoreUnset(err error) error {
	if errors.Is(err, syscall.ENXIO) {
		return nil
	}
	return err
}

func (l *Loops) remember(id linux.FileID, minor uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[id] = minor
}

// find returns the minor number of the device over a file. Errors:
// volume.ErrInUse where there are several.
func (l *Loops) find(file linux.Descriptor, id linux.FileID) (minor uint32, found bool, err error) {
	l.mu.Lock()
	minor, found = l.seen[id]
	l.mu.Unlock()
	if found {
		if is, err := l.sysfs.isLoopOver(minor, id); err == nil && is {
			return minor, true, nil
		}
	}
	candidates, err := l.sysfs.loopsOver(filepath.Join("/", filepath.Base(filepath.Dir(file.Name())), filepath.Base(file.Name())))
	if err != nil {
		return 0, false, err
	}
	found = false
	for _, candidate := range candidates {
		is, err := l.sysfs.isLoopOver(candidate, id)
		if err != nil {
			return 0, false, err
		}
		if is && found {
			return 0, false, fmt.Errorf("%w: the volume's file is shown as %s and %s at once; detach one of them (losetup -d)",
				volume.ErrInUse, linux.LoopPath(minor), linux.LoopPath(candidate))
		}
		if is {
			minor, found = candidate, true
		}
	}
	return minor, found, nil
}

// loopsOver returns the loop devices of which the path of the backing file ends so:
// whoever opens a device keeps it from being detached, so others are left alone. Only the
// end can be known: the kernel tells the path in the mount by which the file was opened,
// and where the namespace of that has gone (that of a container of the plugin), without the
// place where it was mounted.
func (s Sysfs) loopsOver(end string) ([]uint32, error) {
	minors, err := s.loops()
	if err != nil {
		return nil, err
	}
	var candidates []uint32
	for _, minor := range minors {
		backing, err := linux.ReadFile(s.path("block", filepath.Base(linux.LoopPath(minor)), "loop", "backing_file"))
		if err == nil && strings.HasSuffix(strings.TrimSuffix(strings.TrimSpace(backing), " (deleted)"), end) {
			candidates = append(candidates, minor)
		}
	}
	return candidates, nil
}

func (s Sysfs) isLoopOver(minor uint32, id linux.FileID) (bool, error) {
	loop, err := s.loopDevice(minor)
	if errors.Is(err, volume.ErrNotFound) {
		return false, nil
	}
	return err == nil && loop.File == id, err
}

// loops returns the minor numbers of the loop devices that are set up.
func (s Sysfs) loops() ([]uint32, error) {
	names, err := linux.ReadNames(s.path("block"))
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var minors []uint32
	for _, name := range names {
		number, ok := strings.CutPrefix(name, "loop")
		minor, err := strconv.ParseUint(number, 10, 20)
		if !ok || err != nil {
			continue // Not a name that the loop driver gives.
		}
		if _, err := os.Lstat(s.path("block", name, "loop")); err == nil {
			minors = append(minors, uint32(minor))
		}
	}
	slices.Sort(minors)
	return minors, nil
}

// loopAttempts is how often a free loop device is asked for. Whoever asks at the
// same time is given the same one, and one of them gets it; so each attempt is
// lost to somebody who has what he wanted, and needs no waiting.
const loopAttempts = 4096

// attachLoop sets up a free loop device and returns its minor number.
func attachLoop(config linux.LoopConfig) (uint32, error) {
	for range loopAttempts {
		minor, err := linux.FreeLoop()
		if err != nil {
			return 0, fmt.Errorf("%w: get a loop device: %w", volume.ErrExhausted, err)
		}
		err = configureLoop(minor, config)
		if errors.Is(err, syscall.EBUSY) || errors.Is(err, os.ErrNotExist) || IsGone(err) {
			continue // Another process was faster, or removed it.
		}
		if err != nil {
			return 0, fmt.Errorf("set up loop device %d: %w", minor, err)
		}
		return minor, nil
	}
	return 0, fmt.Errorf("%w: other processes took each of %d free loop devices first", volume.ErrExhausted, loopAttempts)
}

func configureLoop(minor uint32, config linux.LoopConfig) error {
	loop, err := linux.OpenLoop(minor, !config.ReadOnly)
	if err != nil {
		return err
	}
	defer loop.Close()
	return linux.ConfigureLoop(loop, config)
}

func openLoop(minor uint32) (*linux.File, error) { return linux.OpenLoop(minor, false) }
