package lvm

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Error is what lvm answers when it fails.
type Error struct {
	// Command is the command of lvm, such as lvcreate.
	Command string
	// Code is its exit code.
	Code int
	// Message is what it wrote to its standard error.
	Message string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s failed with code %d: %s", e.Command, e.Code, e.Message)
}

// CodeFailed is the exit code of a command that was understood and failed
// (ECMD_FAILED in tools/errors.h of lvm2). Others say that this package or the host's
// configuration is wrong.
const CodeFailed = 5

// Programs runs the programs of the host: *program.Host.
type Programs interface {
	Run(ctx context.Context, command program.Command) (stdout []byte, err error)
}

// Devices returns the nodes of the devices that lvm may look at: what is on any other may
// have been written by a tenant, and does not exist for it.
type Devices func() ([]string, error)

// LVM is the LVM of the host, restricted to some of its devices. Its methods may be called
// concurrently: lvm itself locks the volume group.
//
// Errors of all methods: volume.ErrPrecondition where the host has no lvm, or lvm may look
// at no device; volume.ErrInvalid for a name that none can have; *Error.
type LVM struct {
	programs Programs
	devices  Devices
	// old says that lvm does not know --devices: it came with 2.03.12, of 2021.
	old atomic.Bool
}

// New returns the LVM of a host, which looks at the devices that are returned at each run.
func New(programs Programs, devices Devices) *LVM {
	return &LVM{programs: programs, devices: devices}
}

// The names of volume groups and logical volumes, tags and UUIDs (lvm(8), "VALID
// NAMES" and "TAGS"). Names that LVM reserves it refuses itself.
var (
	validName = regexp.MustCompile(`^[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}$`)
	validTag  = regexp.MustCompile(`^[A-Za-z0-9_+./=!:&#][A-Za-z0-9_+./=!:&#-]{0,999}$`)
	validUUID = regexp.MustCompile(`^[A-Za-z0-9]{6}(-[A-Za-z0-9]{4}){5}-[A-Za-z0-9]{6}$`)
	// extents are physical extents of a device as lvm itself reports them:
	// /dev/sda:0-7.
	validExtents = regexp.MustCompile(`^/dev/[A-Za-z0-9+_.@:/-]+:[0-9]+-[0-9]+$`)
)

// CheckName returns an error unless a volume group or logical volume can have the
// name. Errors: volume.ErrInvalid.
func CheckName(name string) error { return check(validName, "name", name) }

// CheckUUID returns an error unless a volume group or logical volume can have the UUID.
// Errors: volume.ErrInvalid.
func CheckUUID(uuid string) error { return check(validUUID, "UUID", uuid) }

func check(valid *regexp.Regexp, what string, values ...string) error {
	for _, value := range values {
		if !valid.MatchString(value) || value == "." || value == ".." {
			return fmt.Errorf("%w: %q is no %s of LVM's", volume.ErrInvalid, value, what)
		}
	}
	return nil
}

// Attributes are what a new logical volume has.
type Attributes struct {
	// Name is its name, Tags are its tags.
	Name string
	Tags []string
	// Size is its size in bytes: a multiple of the size of an extent, unless LVM is
	// to round it up.
	Size uint64
	// ReadOnly says that its device refuses writes.
	ReadOnly bool
}

func (a Attributes) args() ([]string, error) {
	if err := errors.Join(CheckName(a.Name), check(validTag, "tag", a.Tags...)); err != nil {
		return nil, err
	}
	permission := "rw"
	if a.ReadOnly {
		permission = "r"
	}
	// Inactive, and skipped (-k) when the host activates all it has.
	args := []string{"--activate", "n", "--setactivationskip", "y", "--permission", permission, "--name", a.Name}
	for _, tag := range a.Tags {
		args = append(args, "--addtag", tag)
	}
	return args, nil
}

// CreateLinear makes a logical volume of free extents, in any place, and leaves what
// is on them as it is.
func (l *LVM) CreateLinear(ctx context.Context, group string, a Attributes) error {
	args, err := a.args()
	if err != nil {
		return err
	}
	return l.change(ctx, group, "lvcreate", append(args, "--type", "linear", "--zero", "n", "--wipesignatures", "n", "--size", bytes(a.Size), group)...)
}

// CreateThin makes a logical volume of a thin pool.
func (l *LVM) CreateThin(ctx context.Context, group, pool string, a Attributes) error {
	args, err := a.args()
	if err = errors.Join(err, CheckName(pool)); err != nil {
		return err
	}
	return l.change(ctx, group, "lvcreate", append(args, "--type", "thin", "--virtualsize", bytes(a.Size), "--thinpool", group+"/"+pool)...)
}

// Snapshot makes a logical volume that begins as another one of a thin pool, with the
// same size, at one point in time.
func (l *LVM) Snapshot(ctx context.Context, group, origin string, a Attributes) error {
	args, err := a.args()
	if err = errors.Join(err, CheckName(origin)); err != nil {
		return err
	}
	return l.change(ctx, group, "lvcreate", append(args, "--snapshot", group+"/"+origin)...)
}

// Extend grows a logical volume to a size in bytes, and its device where it has one: by
// the given extents, or by any where none are given.
func (l *LVM) Extend(ctx context.Context, group, name string, size uint64, extents ...string) error {
	if err := errors.Join(CheckName(name), check(validExtents, "range of extents", extents...)); err != nil {
		return err
	}
	return l.change(ctx, group, "lvextend", append([]string{"--size", bytes(size), group + "/" + name}, extents...)...)
}

// Rename gives a logical volume another name.
func (l *LVM) Rename(ctx context.Context, group, from, to string) error {
	if err := errors.Join(CheckName(from), CheckName(to)); err != nil {
		return err
	}
	return l.change(ctx, group, "lvrename", group, from, to)
}

// Retag takes tags from the logical volume with a UUID, and gives it others, in one
// step. One that is not there is no error.
func (l *LVM) Retag(ctx context.Context, group, uuid string, remove, add []string) error {
	if err := errors.Join(check(validUUID, "UUID", uuid), check(validTag, "tag", remove...), check(validTag, "tag", add...)); err != nil {
		return err
	}
	var args []string
	for _, tag := range remove {
		args = append(args, "--deltag", tag)
	}
	for _, tag := range add {
		args = append(args, "--addtag", tag)
	}
	return l.change(ctx, group, "lvchange", append(args, selected(uuid, group)...)...)
}

// Activate makes the device of the logical volume with a UUID. One that has its device,
// or is not there, is no error.
func (l *LVM) Activate(ctx context.Context, group, uuid string) error {
	return l.lvchange(ctx, group, uuid, "--activate", "y", "--ignoreactivationskip")
}

// Deactivate removes the device of the logical volume with a UUID. One that has none, or
// is not there, is no error.
func (l *LVM) Deactivate(ctx context.Context, group, uuid string) error {
	return l.lvchange(ctx, group, uuid, "--activate", "n")
}

// Refresh makes the device of an active logical volume as it is recorded, and lets it
// go on where it is suspended.
func (l *LVM) Refresh(ctx context.Context, group, uuid string) error {
	return l.lvchange(ctx, group, uuid, "--refresh")
}

func (l *LVM) lvchange(ctx context.Context, group, uuid string, args ...string) error {
	if err := check(validUUID, "UUID", uuid); err != nil {
		return err
	}
	return l.change(ctx, group, "lvchange", append(args, selected(uuid, group)...)...)
}

// Remove removes the logical volume with a UUID, unless its device is open. One that is
// not there is no error.
func (l *LVM) Remove(ctx context.Context, group, uuid string) error {
	if err := check(validUUID, "UUID", uuid); err != nil {
		return err
	}
	return l.change(ctx, group, "lvremove", append([]string{"--yes"}, selected(uuid, group)...)...)
}

// selected are the arguments that choose one logical volume (lvm(8), --select).
func selected(uuid, group string) []string { return []string{"--select", "lv_uuid=" + uuid, group} }

func bytes(size uint64) string { return strconv.FormatUint(size, 10) + "b" }

func (l *LVM) change(ctx context.Context, group, command string, args ...string) error {
	if err := CheckName(group); err != nil {
		return err
	}
	_, err := l.run(ctx, "", command, args...)
	return err
}

// run runs a command with settings for it (lvm.conf(5)) on the devices that it may look at.
func (l *LVM) run(ctx context.Context, settings, command string, args ...string) ([]byte, error) {
	devices, err := l.devices()
	if err != nil {
		return nil, fmt.Errorf("devices for lvm to look at: %w", err)
	}
	return l.runOn(ctx, devices, settings, command, args...)
}

// oneLine joins lines, which lvm indents.
func oneLine(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
