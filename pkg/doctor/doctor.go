package doctor

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/process"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Finding is something that is left over, or is wrong.
type Finding struct {
	// ID names it for Fix: the same as long as it is the same thing.
	ID string `json:"id"`
	// Check is what it was found by.
	Check Check `json:"check"`
	// Subject is what it is about: a path, a device, a volume.
	Subject string `json:"subject"`
	// Message says what was found, Meaning what that means for whoever uses the node.
	Message string `json:"message"`
	Meaning string `json:"meaning"`
	// Remedy says what to do, as commands where there are some.
	Remedy string `json:"remedy"`
	// Fix says what Fix does; empty: it does nothing, since data could be lost, or
	// somebody has to decide.
	Fix string `json:"fix,omitempty"`

	// mend does what Fix says. Nobody may have the devices open, and no call may be
	// under way for what is named by locks.
	mend    func(ctx context.Context) error
	devices []linux.DeviceNumber
	locks   []string
}

// IsNote reports whether it says what was not looked at, as it never is in this place, and
// nothing that is wrong.
func (f Finding) IsNote() bool { return f.Check == PodsUnseen }

// Check is one of a few words, which stay.
type Check string

// The checks.
const (
	OrphanPublish      Check = "OrphanPublish"
	StackedMounts      Check = "StackedMounts"
	StaleLoop          Check = "StaleLoop"
	StaleView          Check = "StaleView"
	StaleLock          Check = "StaleLock"
	ForeignHolder      Check = "ForeignHolder"
	BackingDeleted     Check = "BackingDeleted"
	StageWithoutDevice Check = "StageWithoutDevice"
	OrphanStage        Check = "OrphanStage"
	OldRecord          Check = "OldRecord"
	DamagedRecord      Check = "DamagedRecord"
	DeadAttachment     Check = "DeadAttachment"
	NodeOnHost         Check = "NodeOnHost"
	OrphanClaim        Check = "OrphanClaim"
	DamagedTable       Check = "DamagedTable"
	FailedWipe         Check = "FailedWipe"
	ErrorMapping       Check = "ErrorMapping"
	// Unseen: something could not be looked at, so that nobody knows what is there.
	Unseen Check = "Unseen"
	// PodsUnseen: it was not looked whether pods are gone. It is a note.
	PodsUnseen Check = "PodsUnseen"
)

// Checks returns all checks that there are.
func Checks() []Check {
	return []Check{
		OrphanPublish, StackedMounts, StaleLoop, StaleView, StaleLock, ForeignHolder, BackingDeleted,
		StageWithoutDevice, OrphanStage, OldRecord, DamagedRecord, DeadAttachment, NodeOnHost, OrphanClaim, DamagedTable, FailedWipe, ErrorMapping, Unseen, PodsUnseen,
	}
}

// attachments are the devices in running containers.
type attachments interface {
	Detach(ctx context.Context, id string) (hotplug.Attachment, error)
}

// tableRepairer is a pool of disks. Errors: volume.ErrNotFound.
type tableRepairer interface{ RepairTable(disk string) error }

// deactivator is a pool that gives up the device of a volume that nobody uses.
type deactivator interface {
	Deactivate(ctx context.Context, name string) error
}

// reporter is a pool that knows the devices of a volume; the conditions are for others.
type reporter interface {
	VolumeHealth(ctx context.Context, name string) ([]volume.Condition, []linux.DeviceNumber, error)
}

// deleter is a pool that removes volumes.
type deleter interface {
	Delete(ctx context.Context, name string) error
}

// Options say what a doctor works with. The caller sees to it that nobody else works
// on the node meanwhile, but for those that lock names in Inflight.
type Options struct {
	// Inspector looks at the node.
	Inspector *inspect.Inspector
	// Publisher knows what is staged and published.
	Publisher *publish.Publisher
	// Inflight are the volumes and targets that a call is under way for.
	Inflight *inflight.Names
	// Attachments end those that are dead; nil: the plugin does so once it runs.
	Attachments attachments
}

// Doctor finds and mends. Its methods may be called concurrently.
type Doctor struct {
	Options
	processes process.Table
}

// New returns a doctor.
func New(options Options) *Doctor { return &Doctor{options, process.New("/proc")} }

// Findings returns what is left over or wrong, in an order that stays, and changes
// nothing. What could not be looked at is a finding too. Errors: that of ctx.
func (d *Doctor) Findings(ctx context.Context) ([]Finding, error) {
	s, err := d.Inspector.Survey(ctx)
	if err != nil {
		return nil, err
	}
	return d.examine(ctx, s), nil
}

func (d *Doctor) examine(ctx context.Context, s *inspect.Survey) []Finding {
	e := &examination{Doctor: d, survey: s}
	e.prepare()
	for _, check := range []func(){
		e.uses, e.loops, e.records, e.attachmentRecords, e.nodesOnHost, e.disks, e.wipes, e.mappings, e.unseen,
	} {
		check()
	}
	e.holders(ctx)
	slices.SortFunc(e.found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(slices.Index(Checks(), a.Check), slices.Index(Checks(), b.Check)), cmp.Compare(a.Subject, b.Subject))
	})
	return append([]Finding{}, slices.CompactFunc(e.found, func(a, b Finding) bool { return a.ID == b.ID })...)
}

// idOf names a finding by what it is and what it is about.
func idOf(check Check, subject string) string {
	hash := sha256.Sum256([]byte(string(check) + "\x00" + subject))
	return string(check) + "-" + hex.EncodeToString(hash[:4])
}

// Fix mends the finding with the ID, and returns it. It looks again first.
//
// Errors: volume.ErrNotFound where there is no such finding, or no longer;
// volume.ErrPrecondition where a human has to decide, or nobody can see who uses it;
// volume.ErrInUse where somebody does; volume.ErrAborted while a call is under way.
func (d *Doctor) Fix(ctx context.Context, id string) (Finding, error) {
	finding, err := d.find(ctx, id)
	if err != nil {
		return Finding{}, err
	}
	if finding.mend == nil {
		return finding, fmt.Errorf("%w: %s is not mended by itself: data could be lost, or somebody has to decide; %s", volume.ErrPrecondition, id, finding.Remedy)
	}
	unlock, err := d.Inflight.Lock(finding.locks...)
	if err != nil {
		return finding, err
	}
	defer unlock()
	// It may have become another thing before it was locked.
	if finding, err = d.find(ctx, id); err != nil {
		return Finding{}, err
	}
	if finding.mend == nil {
		return finding, fmt.Errorf("%w: %s has changed while it was looked at; look again", volume.ErrAborted, id)
	}
	if err := d.checkUnheld(ctx, finding.devices); err != nil {
		return finding, err
	}
	if err := finding.mend(ctx); err != nil {
		return finding, fmt.Errorf("mend %s: %w", id, err)
	}
	klog.FromContext(ctx).Info("Mended", "finding", id, "subject", finding.Subject, "what", finding.Message, "done", finding.Fix)
	return finding, nil
}

func (d *Doctor) find(ctx context.Context, id string) (Finding, error) {
	found, err := d.Findings(ctx)
	if err != nil {
		return Finding{}, err
	}
	at := slices.IndexFunc(found, func(f Finding) bool { return f.ID == id })
	if at < 0 {
		return Finding{}, fmt.Errorf("%w: there is no finding %s, or no longer", volume.ErrNotFound, id)
	}
	return found[at], nil
}

// checkUnheld returns an error where processes have one of the devices open, or that
// cannot be seen. Errors: volume.ErrInUse, volume.ErrPrecondition.
func (d *Doctor) checkUnheld(ctx context.Context, devices []linux.DeviceNumber) error {
	if len(devices) == 0 {
		return nil
	}
	if err := checkVisible(); err != nil {
		return err
	}
	for _, number := range devices {
		holders, err := d.processes.Holders(ctx, number, 0)
		if err != nil {
			return err
		}
		var names []string
		for _, holder := range holders {
			if !holder.IsKnown() && holder.Container == "" {
				continue // Nothing was given to it.
			}
			names = append(names, fmt.Sprintf("process %d (%s)", holder.PID, holder.Command))
		}
		if len(names) > 0 {
			return fmt.Errorf("%w: %s has device %s open; end it first", volume.ErrInUse, strings.Join(names, ", "), number)
		}
	}
	return nil
}

// firstPIDNamespace is the namespace of the first process of the machine
// (PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h).
const firstPIDNamespace = "pid:[4026531836]"

// checkVisible returns an error where /proc may not show all processes: in a PID
// namespace that is not the machine's, and whose first process is in a container with
// this one. Errors: volume.ErrPrecondition.
func checkVisible() error {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return fmt.Errorf("see whether all processes are visible: %w", err)
	}
	if own == firstPIDNamespace {
		return nil
	}
	// A node that is a container itself has a first process of its own.
	mine, err := os.Readlink("/proc/self/ns/mnt")
	if err == nil {
		var first string
		if first, err = os.Readlink("/proc/1/ns/mnt"); err == nil && first != mine {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("%w: not all processes of the node are visible here, so nobody can say who uses a device; run it on the node, or in a pod with hostPID: true", volume.ErrPrecondition), err)
}
