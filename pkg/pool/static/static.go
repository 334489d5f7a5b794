// Package static is the pool of devices that an administrator names in a
// PersistentVolume: nothing is provisioned, nothing is wiped.
//
// volumeAttributes.device is the path of the device, which should be one that
// survives a reboot, such as /dev/disk/by-id/...; wwid, serial and size pin what
// must be found there. The node's configuration says which paths may be named.
// Whoever may write a PersistentVolume cannot make links in the host's /dev, but
// can write any path; so a path is taken only as far as it stays where the
// configuration says.
package static

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The keys of volumeAttributes that this pool reads.
const (
	// DeviceAttribute is the path of the device.
	DeviceAttribute = "device"
	// WWIDAttribute pins the world wide identifier of the disk.
	WWIDAttribute = "wwid"
	// SerialAttribute pins the serial number of the disk.
	SerialAttribute = "serial"
	// SizeAttribute pins the exact size of the device: bytes, or a Kubernetes
	// quantity such as 100Gi.
	SizeAttribute = "size"
)

// Pool opens the devices that volumes name. Its methods may be called
// concurrently.
type Pool struct {
	allow []string
	sysfs blockdev.Sysfs
}

// New returns the pool of the devices whose paths match one of the patterns
// (filepath.Match), which must be valid.
func New(allow []string, sysfs blockdev.Sysfs) *Pool {
	return &Pool{allow: allow, sysfs: sysfs}
}

// Open opens the device that the attributes of a volume name, and verifies its
// identity by the open descriptor.
//
// Errors: volume.ErrInvalid for a malformed attribute, a path that may not be
// named or something that is no block device; volume.ErrNotFound where there is
// no such device or it has gone; volume.ErrMismatch where a pin does not hold.
func (p *Pool) Open(_ context.Context, attributes map[string]string) (*blockdev.Device, error) {
	if err := checkAttributes(attributes); err != nil {
		return nil, err
	}
	path := attributes[DeviceAttribute]
	resolved, err := p.resolve(path)
	if err != nil {
		return nil, err
	}
	device, err := blockdev.Open(resolved, p.sysfs)
	if err != nil {
		return nil, fmt.Errorf("volumeAttributes.%s %q: %w", DeviceAttribute, path, err)
	}
	if err := errors.Join(p.checkNode(device, path, resolved), p.checkPins(device, attributes)); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

// checkAttributes refuses attributes that are not read, or say nothing: a pin that
// is misspelt, or that a template left empty, would guard nothing. Keys with a
// slash are those of Kubernetes.
func checkAttributes(attributes map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(attributes)) {
		switch key {
		case DeviceAttribute: // resolve reads it.
		case WWIDAttribute, SerialAttribute, SizeAttribute:
			if strings.TrimSpace(attributes[key]) == "" {
				return fmt.Errorf("%w: volumeAttributes.%s is empty; set it or leave it out", volume.ErrInvalid, key)
			}
		default:
			if !strings.Contains(key, "/") {
				return fmt.Errorf("%w: volumeAttributes.%s is unknown; this driver reads %s, %s, %s and %s",
					volume.ErrInvalid, key, DeviceAttribute, WWIDAttribute, SerialAttribute, SizeAttribute)
			}
		}
	}
	return nil
}

// resolve returns the path without links of the device that may be named path.
func (p *Pool) resolve(path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("%w: volumeAttributes.%s is missing; set it to a stable path of the disk, one below /dev/disk/by-id",
			volume.ErrInvalid, DeviceAttribute)
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.Contains(path, "\x00") {
		return "", fmt.Errorf("%w: volumeAttributes.%s %q is not an absolute path without . and .. elements and NUL bytes",
			volume.ErrInvalid, DeviceAttribute, path)
	}
	if !p.allowed(path) {
		return "", p.refuse(path, path)
	}
	// The directory may lie behind a link of its own.
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", resolveError(path, err)
	}
	if place := filepath.Join(dir, filepath.Base(path)); !p.allowed(place) {
		return "", p.refuse(path, place)
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", resolveError(path, err)
	}
	return resolved, nil
}

// checkNode refuses a link that leads out of the allowed paths to anything but
// the node that the kernel itself made for the device, as the links of udev do.
func (p *Pool) checkNode(device *blockdev.Device, path, resolved string) error {
	if p.allowed(resolved) {
		return nil
	}
	kernelNode, err := p.sysfs.NodePath(device.Number())
	if err != nil {
		return err
	}
	if resolved != kernelNode {
		return p.refuse(path, resolved)
	}
	return nil
}

func (p *Pool) allowed(path string) bool {
	return slices.ContainsFunc(p.allow, func(pattern string) bool {
		matched, err := filepath.Match(pattern, path)
		return err == nil && matched // The configuration has refused malformed patterns.
	})
}

func (p *Pool) refuse(path, place string) error {
	leads := ""
	if place != path {
		leads = fmt.Sprintf(" leads to %s, which", place)
	}
	return fmt.Errorf("%w: volumeAttributes.%s %q%s is not among the devices that this node allows (devices.allow: %s)",
		volume.ErrInvalid, DeviceAttribute, path, leads, strings.Join(p.allow, ", "))
}

func resolveError(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: no device at volumeAttributes.%s %q; check that the disk is attached and that udev has made the link",
			volume.ErrNotFound, DeviceAttribute, path)
	}
	return fmt.Errorf("resolve volumeAttributes.%s %q: %w", DeviceAttribute, path, err)
}

// checkPins compares what the attributes say of the device with what it is.
func (p *Pool) checkPins(device *blockdev.Device, attributes map[string]string) error {
	facts := []struct {
		attribute string
		read      func() (string, error)
	}{
		{WWIDAttribute, func() (string, error) { return p.sysfs.WWID(device.Number()) }},
		{SerialAttribute, func() (string, error) { return p.sysfs.Serial(device.Number()) }},
	}
	for _, fact := range facts {
		want := strings.TrimSpace(attributes[fact.attribute])
		if want == "" {
			continue
		}
		got, err := fact.read()
		if errors.Is(err, blockdev.ErrNoFact) {
			return fmt.Errorf("%w: volumeAttributes.%s is %q, but %s states none; is it the right disk?",
				volume.ErrMismatch, fact.attribute, want, device)
		}
		if err != nil {
			return fmt.Errorf("verify volumeAttributes.%s of %s: %w", fact.attribute, device, err)
		}
		if got != want {
			return fmt.Errorf("%w: volumeAttributes.%s is %q, but %s has %q; is it the right disk?",
				volume.ErrMismatch, fact.attribute, want, device, got)
		}
	}
	return errors.Join(p.checkUnique(device, attributes), checkSize(device, attributes[SizeAttribute]))
}

// checkUnique refuses pins that hold for another disk of the machine as well: they do
// not say which is meant. The namespaces of an NVMe controller have its serial number
// in common, the paths to one disk all it states, and some disks are sold with the
// same numbers; a link by such a number leads to any of them.
func (p *Pool) checkUnique(device *blockdev.Device, attributes map[string]string) error {
	wwid, serial := strings.TrimSpace(attributes[WWIDAttribute]), strings.TrimSpace(attributes[SerialAttribute])
	if wwid == "" && serial == "" {
		return nil
	}
	disks, err := p.sysfs.Disks()
	if err != nil {
		return fmt.Errorf("see whether the pins hold for one disk only: %w", err)
	}
	for _, disk := range disks {
		// Of a disk that cannot be read, nothing is stated.
		if wwid != "" && disk.WWID != wwid || serial != "" && disk.Serial != serial {
			continue
		}
		same, err := p.sysfs.Overlap(device.Number(), disk.Number)
		if err != nil {
			return fmt.Errorf("see whether the pins hold for one disk only: %w", err)
		}
		if !same {
			return fmt.Errorf("%w: what volumeAttributes pin is stated by %s and by %s; pin %s and %s both, and of two paths to one disk take one away",
				volume.ErrMismatch, device, disk.NodePath, WWIDAttribute, SerialAttribute)
		}
	}
	return nil
}

func checkSize(device *blockdev.Device, pin string) error {
	if pin == "" {
		return nil
	}
	want, err := parseSize(pin)
	if err != nil {
		return err
	}
	if device.Size() != want {
		return fmt.Errorf("%w: volumeAttributes.%s is %d bytes, but %s has %d; is it the right disk?",
			volume.ErrMismatch, SizeAttribute, want, device, device.Size())
	}
	return nil
}

// sizeForm is a quantity without an exponent, with which resource.ParseQuantity
// would calculate for hours (1e-2147483647).
var sizeForm = regexp.MustCompile(`^[-+]?[0-9]{1,19}(\.[0-9]{1,9})?([numk]|[KMGTPE]i?)?$`)

func parseSize(text string) (uint64, error) {
	if !sizeForm.MatchString(text) {
		return 0, notASize(text)
	}
	quantity, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, notASize(text)
	}
	bytes := quantity.Value() // Rounded up, and capped.
	if bytes <= 0 || bytes == math.MaxInt64 || resource.NewQuantity(bytes, resource.BinarySI).Cmp(quantity) != 0 {
		return 0, fmt.Errorf("%w: volumeAttributes.%s %q is not a whole, positive number of bytes",
			volume.ErrInvalid, SizeAttribute, text)
	}
	return uint64(bytes), nil
}

func notASize(text string) error {
	return fmt.Errorf("%w: volumeAttributes.%s %q is not a size; write bytes, or a quantity such as 100Gi",
		volume.ErrInvalid, SizeAttribute, text)
}
