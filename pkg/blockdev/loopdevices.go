package blockdev

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// LoopDevice is a loop device that is set up, whoever made it.
type LoopDevice struct {
	// ID is which loop device it is, ReadOnly says that it refuses all writes.
	ID       LoopID
	ReadOnly bool
	// Number is its device number, Path its node.
	Number linux.DeviceNumber
	Path   string
	// Label is what it was labelled with; empty also where the kernel ends it with its
	// last user.
	Label string
	// Backing is the path of what it shows, as the kernel tells it: from a mount that
	// may be gone. Deleted says that the file is in no directory any more.
	Backing string
	Deleted bool
	// File is the file or node that it shows, Device the number of the block device
	// where it is one.
	File   linux.FileID
	Device linux.DeviceNumber
	// IsView says that it could be a read-only view (Device.View), IsHold that it could be
	// a hold (Device.Hold): it shows another device, and none of its users can write.
	IsView, IsHold bool
}

// LoopDevices returns the loop devices that are set up. It opens each for a moment,
// which keeps one that is being detached alive for as long. One that goes meanwhile
// is left out, as is one that does not answer.
func (s Sysfs) LoopDevices() ([]LoopDevice, error) {
	minors, err := s.loops()
	if err != nil {
		return nil, err
	}
	var found []LoopDevice
	answers := s.askEach(minors)
	for _, minor := range minors {
		answer := answers[minor]
		switch {
		case answer.err == nil:
			found = append(found, answer.loop)
		case !errors.Is(answer.err, volume.ErrNotFound) && !errors.Is(answer.err, errDead) && !errors.Is(answer.err, linux.ErrStuck):
			return nil, answer.err
		}
	}
	return found, nil
}

// loopAnswers are what loop devices have said, and what was asked and is not answered.
type loopAnswers struct {
	limit *linux.Limit
	mu    sync.Mutex
	// writable are those that can be written, by their minor numbers: what one shows does
	// not change for as long as it is set up.
	writable map[uint32]LoopDevice
}

// loopWait is how long a loop device may take to say what it is, which needs no I/O.
const loopWait = 2 * time.Second

func newLoopAnswers() *loopAnswers {
	return &loopAnswers{limit: linux.NewLimit(loopWait, math.MaxInt), writable: map[uint32]LoopDevice{}}
}

// loopAnswer is what a loop device has said.
type loopAnswer struct {
	loop LoopDevice
	err  error
}

// atOnce is how many loop devices are asked at once: each takes a thread.
const atOnce = 32

// askEach asks loop devices side by side: those that do not answer are waited for together.
func (s Sysfs) askEach(minors []uint32) map[uint32]*loopAnswer {
	answers := map[uint32]*loopAnswer{}
	for _, minor := range minors {
		answers[minor] = &loopAnswer{}
	}
	var group errgroup.Group
	group.SetLimit(atOnce)
	for minor, answer := range answers {
		group.Go(func() error {
			answer.loop, answer.err = s.loopDevice(minor)
			return nil
		})
	}
	group.Wait() //nolint:errcheck,gosec // Each answer has its own.
	return answers
}

// errDead says that a loop device shows a file on a filesystem that fails.
var errDead = errors.New("its file is on a filesystem that fails")

// loopDevice asks for a loop device, with a time limit: who has a read-only view can have it
// show a file of his own (LOOP_CHANGE_FD), whose server then decides whether the driver
// answers, and when. Such a view counts as none: a node of a device always answers.
//
// One that can be written is known from before: its user can have the driver wait for what he
// has written. Errors: volume.ErrNotFound where it is not set up, or counts as none. Of one that
// can be written: errDead, and linux.ErrStuck, where it is not known what it shows.
func (s Sysfs) loopDevice(minor uint32) (LoopDevice, error) {
	found, err := linux.Ask(s.asked.limit, linux.LoopPath(minor), func() (LoopDevice, error) { return s.askLoop(minor) })
	switch {
	case err == nil:
		s.asked.know(found)
		return found, nil
	case errors.Is(err, volume.ErrNotFound):
		return LoopDevice{}, err
	}
	// What follows is the driver's own word, which no user of a view changes (set_disk_ro in
	// loop_configure).
	id, readOnly, roErr := s.ReadOnlyLoop(linux.DeviceNumber{Major: linux.LoopMajor, Minor: minor})
	if errors.Is(roErr, volume.ErrNotFound) {
		return LoopDevice{}, roErr
	}
	if roErr != nil {
		return LoopDevice{}, fmt.Errorf("loop device %d: %w", minor, errors.Join(err, roErr))
	}
	if known, ok := s.asked.known(id); ok && !readOnly && errors.Is(err, linux.ErrStuck) {
		return known, nil
	}
	if readOnly && (errors.Is(err, errDead) || errors.Is(err, linux.ErrStuck)) {
		return LoopDevice{}, fmt.Errorf("%w: loop device %d shows nothing: %w", volume.ErrNotFound, minor, err)
	}
	return LoopDevice{}, fmt.Errorf("loop device %d: %w; see whether the filesystem of its file (/sys/block/loop%d/loop/backing_file) works, or detach it", minor, err, minor)
}

// know remembers what a loop device is that can be written.
func (a *loopAnswers) know(loop LoopDevice) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if loop.ReadOnly {
		delete(a.writable, loop.ID.Minor)
	} else {
		a.writable[loop.ID.Minor] = loop
	}
}

// known returns what a loop device is that has not been set up anew since.
func (a *loopAnswers) known(id LoopID) (LoopDevice, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	loop, ok := a.writable[id.Minor]
	return loop, ok && id.Seq != 0 && loop.ID == id
}

func (s Sysfs) askLoop(minor uint32) (LoopDevice, error) {
	loop, err := openLoop(minor)
	if IsGone(err) || errors.Is(err, os.ErrNotExist) {
		return LoopDevice{}, fmt.Errorf("%w: loop device %d is not set up", volume.ErrNotFound, minor)
	}
	if err != nil {
		return LoopDevice{}, fmt.Errorf("open: %w", err)
	}
	defer loop.Close()
	return s.describeLoop(minor, loop)
}

func (s Sysfs) describeLoop(minor uint32, loop linux.Descriptor) (LoopDevice, error) {
	status, err := linux.StatusOfLoop(loop)
	if errors.Is(err, syscall.ENXIO) {
		return LoopDevice{}, fmt.Errorf("%w: loop device %d is not set up", volume.ErrNotFound, minor)
	}
	if err != nil {
		return LoopDevice{}, fmt.Errorf("%w: %w", errDead, err)
	}
	found := LoopDevice{
		Number: linux.DeviceNumber{Major: linux.LoopMajor, Minor: minor}, Path: linux.LoopPath(minor),
		File: status.Backing, Device: status.Device, ReadOnly: status.ReadOnly, ID: LoopID{Minor: minor},
	}
	if found.ID.Seq, err = linux.DiskSeq(loop); err != nil && !errors.Is(err, syscall.ENOTTY) {
		return LoopDevice{}, fmt.Errorf("sequence number: %w", err)
	}
	if !status.Ends {
		found.Label = status.Label
	}
	found.IsHold = status.ReadOnly && status.Device != (linux.DeviceNumber{}) && strings.HasPrefix(found.Label, holdPrefix)
	// A user may have had a view show a file, which leaves the label as it is, or set that.
	found.IsView = status.ReadOnly && !found.IsHold && (status.Device != (linux.DeviceNumber{}) || strings.HasPrefix(found.Label, viewPrefix))
	backing, err := readText(s.path("block", filepath.Base(found.Path)), "loop/backing_file")
	if errors.Is(err, os.ErrNotExist) {
		return LoopDevice{}, fmt.Errorf("%w: loop device %d is not set up", volume.ErrNotFound, minor)
	}
	if err != nil {
		return LoopDevice{}, fmt.Errorf("backing file: %w", err)
	}
	found.Backing = backing
	if path, marked := strings.CutSuffix(backing, deleted); marked {
		// Also a file that exists can be called so.
		if _, err := linux.StatPath(backing); err != nil {
			found.Backing, found.Deleted = path, true
		}
	}
	return found, nil
}

// DetachLoop ends a loop device that LoopDevices returned, if it still is that.
// Where somebody has it open, the kernel ends it with the last one who closes it.
//
// Errors: volume.ErrMismatch where the number is another's by now; volume.ErrInUse
// where it is claimed.
func (s Sysfs) DetachLoop(device LoopDevice) error {
	node, err := linux.OpenPath(device.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer node.Close()
	loop, err := claimLoop(node)
	if errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("%w: %s is %s", volume.ErrInUse, device.Path, s.explainClaim(device.Number))
	}
	if IsGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open loop device: %w", err)
	}
	defer loop.Close()
	now, err := s.describeLoop(device.Number.Minor, loop)
	if errors.Is(err, volume.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if now.File != device.File || now.Label != device.Label || now.Device != device.Device {
		return fmt.Errorf("%w: %s is another loop device by now", volume.ErrMismatch, device.Path)
	}
	if err := linux.ClearLoop(loop); err != nil && !errors.Is(err, syscall.ENXIO) {
		return fmt.Errorf("detach %s: %w", device.Path, err)
	}
	// A hold would keep it: what is detached is held for nobody.
	return s.ReleaseHolds(device.Number, "")
}

// How often, and how far apart, a loop device is claimed: whoever looks for a free one
// claims it for a moment (loop_configure in the kernel's drivers/block/loop.c).
const (
	claimRetries = 40
	claimWait    = 25 * time.Millisecond
)

func claimLoop(node linux.Descriptor) (loop *linux.File, err error) {
	for range claimRetries {
		if loop, err = linux.Reopen(node, true); !errors.Is(err, syscall.EBUSY) {
			break
		}
		time.Sleep(claimWait)
	}
	return loop, err
}
