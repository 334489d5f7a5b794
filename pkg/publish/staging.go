package publish

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The names of the records in a staging folder. Whatever else is there is not
// ours, and stays.
const (
	stagedRecord      = "rawblock-device"
	publicationPrefix = "rawblock-publication-"
)

// Staging is the staging folder of one volume, which its caller makes and
// removes. Close it after use.
type Staging struct {
	root      *os.Root
	publisher *Publisher
}

// OpenStaging opens a staging folder. Errors: fs.ErrNotExist where there is no
// folder at the path.
func (p *Publisher) OpenStaging(path string) (*Staging, error) {
	// os.OpenRoot does not say in a way that can be told apart that something is
	// no folder.
	info, err := os.Stat(path)
	if errors.Is(err, syscall.ENOTDIR) || err == nil && !info.IsDir() {
		return nil, fmt.Errorf("%w: staging_target_path %s is not a directory", fs.ErrNotExist, path)
	}
	if err != nil {
		return nil, fmt.Errorf("look at staging_target_path: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open staging_target_path: %w", err)
	}
	return &Staging{root, p}, nil
}

// Close closes the folder.
func (s *Staging) Close() {
	s.root.Close() //nolint:errcheck,gosec // A handle.
}

// Stage records that the device is staged for a volume with the access mode. It
// may be repeated, also under running containers.
//
// Errors: volume.ErrInUse where the host uses the device; volume.ErrIncompatible
// where it is staged with another mode; volume.ErrMismatch where another device
// is staged and published.
func (s *Staging) Stage(device *blockdev.Device, mode volume.AccessMode) error {
	record, found, err := s.staged()
	if err != nil {
		return err
	}
	if found && record.isSame(device) {
		if record.mode != mode {
			return fmt.Errorf("%w: the volume is staged with access mode %s, not %s; unstage it first", volume.ErrIncompatible, record.mode, mode)
		}
		return nil
	}
	if found {
		publications, err := s.publications()
		if err != nil {
			return err
		}
		if len(publications) > 0 {
			return mismatch(record, device, publications)
		}
	}
	if err := device.CheckFree(); err != nil {
		return err
	}
	return s.replace(stagedRecord, staged{device.Number(), device.DiskSeq(), mode, s.publisher.bootID}.String())
}

// Admit decides whether the device may be published as wanted, beside what is
// published of the volume already, and records the publication. A volume that
// was not staged in this boot is staged: after a reboot, kubelet may publish
// without staging.
//
// Errors: volume.ErrMismatch where the device is not the one that was staged;
// volume.ErrInUse where it is published nowhere and the host uses it;
// volume.ErrIncompatible and volume.ErrPrecondition by the tables of the CSI
// specification.
func (s *Staging) Admit(ctx context.Context, device *blockdev.Device, wanted Publication) error {
	publications, err := s.publications()
	if err != nil {
		return err
	}
	if err := admit(publications, wanted); err != nil {
		return err
	}
	record, found, err := s.staged()
	switch {
	case err != nil:
		return err
	case !found:
		klog.FromContext(ctx).Info("Volume is published without having been staged, staging it now", "device", device.Number())
		if err := s.Stage(device, wanted.Mode); err != nil {
			return err
		}
	case !record.isSame(device):
		return mismatch(record, device, publications)
	case len(publications) == 0:
		// The host may have begun to use it since it was staged. Once it is
		// published, a claim is the business of the pods that have it.
		if err := device.CheckFree(); err != nil {
			return err
		}
	}
	if slices.Contains(publications, wanted) {
		return nil
	}
	return s.replace(publicationRecord(wanted.Target), wanted.String())
}

func mismatch(record staged, device *blockdev.Device, publications []Publication) error {
	remedy := "unstage the volume and stage it again"
	if len(publications) > 0 {
		remedy = fmt.Sprintf("delete the pods that use it first (it is published at %s)", publications[0].Target)
	}
	return fmt.Errorf("%w: device %s with disk sequence number %d was staged, but the volume is now %s with disk sequence number %d: the disk was replaced or attached again; %s",
		volume.ErrMismatch, record.number, record.seq, device, device.DiskSeq(), remedy)
}

// StagedDevice returns the number of the device that is staged, if it was staged
// in this boot.
func (s *Staging) StagedDevice() (number linux.DeviceNumber, found bool, err error) {
	record, found, err := s.staged()
	return record.number, found, err
}

// Unstage forgets the volume. It may be repeated. Errors: volume.ErrPrecondition
// while the volume is published.
func (s *Staging) Unstage() error {
	publications, err := s.publications()
	if err != nil {
		return err
	}
	if len(publications) > 0 {
		return fmt.Errorf("%w: the volume is published at %s; unpublish it first", volume.ErrPrecondition, publications[0].Target)
	}
	return s.remove(stagedRecord)
}

// staged returns the record of the staged device. One of an earlier boot does
// not count: device and sequence numbers begin anew.
func (s *Staging) staged() (record staged, found bool, err error) {
	text, err := s.root.Readlink(stagedRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return staged{}, false, nil
	}
	if err != nil {
		return staged{}, false, fmt.Errorf("read what is staged: %w", err)
	}
	record, err = parseStaged(text)
	if err != nil {
		return staged{}, false, err
	}
	return record, record.bootID == s.publisher.bootID, nil
}

// publications returns what is published of the volume, and removes the records
// of what no longer is.
func (s *Staging) publications() ([]Publication, error) {
	dir, err := s.root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("open staging_target_path: %w", err)
	}
	defer dir.Close() //nolint:errcheck // Opened for reading only.
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read staging_target_path: %w", err)
	}
	var live []Publication
	for _, name := range names {
		if !strings.HasPrefix(name, publicationPrefix) {
			continue
		}
		text, err := s.root.Readlink(name)
		if err != nil {
			return nil, fmt.Errorf("read what is published: %w", err)
		}
		publication, err := parsePublication(text)
		if err != nil {
			return nil, err
		}
		published, err := publication.isLive()
		if err != nil {
			return nil, err
		}
		if published {
			live = append(live, publication)
		} else if err := s.remove(name); err != nil {
			return nil, err
		}
	}
	return live, nil
}

// isLive reports whether a device is mounted at the target.
func (p Publication) isLive() (bool, error) {
	place, err := openPlace(p.Target)
	if noFolder(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the folder of target_path: %w", err)
	}
	defer place.Close()
	info, found, err := place.stat()
	if err != nil {
		return false, fmt.Errorf("look at target_path: %w", err)
	}
	return found && isPublished(info), nil
}

func publicationRecord(target string) string {
	hash := sha256.Sum256([]byte(target))
	return publicationPrefix + hex.EncodeToString(hash[:8])
}

// replace writes a record. A crash on the way leaves none, which is what a
// repeated call expects.
func (s *Staging) replace(name, text string) error {
	if err := s.remove(name); err != nil {
		return err
	}
	err := s.root.Symlink(text, name)
	if errors.Is(err, syscall.ENAMETOOLONG) {
		return fmt.Errorf("%w: target_path is too long to be recorded: %w", volume.ErrInvalid, err)
	}
	if err != nil {
		return fmt.Errorf("record %s: %w", name, err)
	}
	crashpoint.Here("record written")
	return nil
}

func (s *Staging) remove(name string) error {
	err := s.root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove record %s: %w", name, err)
	}
	crashpoint.Here("record removed")
	return nil
}
