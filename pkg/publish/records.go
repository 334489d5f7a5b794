package publish

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The names of the records in the directory of a volume.
const (
	stagedRecord      = "device"
	publicationPrefix = "publication-"
)

// records are what is recorded of one volume.
type records struct {
	dir   string
	roots roots
}

func (p *Publisher) records(volumeID string) records {
	return records{filepath.Join(p.state, shortHash(volumeID)), p.roots}
}

// allRecords returns the records of all volumes, in the order of their directories. What else
// is in the state directory has other names.
func allRecords(state string, roots roots) ([]records, error) {
	names, err := readNames(state)
	if err != nil {
		return nil, fmt.Errorf("read what is staged and published: %w", err)
	}
	slices.Sort(names)
	var all []records
	for _, name := range names {
		if len(name) == len(shortHash("")) {
			all = append(all, records{filepath.Join(state, name), roots})
		}
	}
	return all, nil
}

func publicationRecord(target string) string { return publicationPrefix + shortHash(target) }

// shortHash stands for a text in a file name.
func shortHash(text string) string {
	hash := sha256.Sum256([]byte(text))
	return hex.EncodeToString(hash[:16])
}

// staged returns the record of the staged device. One of an earlier boot does
// not count: device and sequence numbers begin anew. One that cannot be understood is
// as good as none: the kernel is asked then, and the others are none the worse.
func (r records) staged(bootID string) (record staged, found bool, err error) {
	text, ok, err := r.read(stagedRecord)
	if err != nil || !ok {
		return staged{}, false, err
	}
	record, err = parseStaged(text)
	if err != nil {
		r.complain(err)
		return staged{}, false, nil
	}
	return record, record.bootID == bootID, nil
}

// read returns the text of a record, which is not there where ok is false.
func (r records) read(name string) (text string, ok bool, err error) {
	text, err = linux.ReadLink(filepath.Join(r.dir, name))
	switch {
	case noDir(err):
		return "", false, nil
	case errors.Is(err, syscall.EINVAL): // Not a link (readlink(2)).
		r.complain(err)
		return "", false, nil
	case err != nil:
		return "", false, fmt.Errorf("read what is staged and published: %w", err)
	}
	return text, true, nil
}

// complain logs that a record is malformed. rawblockctl status and doctor tell so too.
func (r records) complain(err error) {
	klog.Background().Error(err, "A record is malformed and does not count; what is published is asked of the kernel", "directory", r.dir)
}

// publications returns what is published of the volume, and removes the records
// of what no longer is.
func (r records) publications() ([]Publication, error) {
	names, err := readNames(r.dir)
	if err != nil {
		return nil, fmt.Errorf("read what is published: %w", err)
	}
	var live []Publication
	for _, name := range names {
		if !strings.HasPrefix(name, publicationPrefix) {
			continue
		}
		text, ok, err := r.read(name)
		if err != nil {
			return nil, err
		}
		publication, err := parsePublication(text)
		if err != nil && ok {
			r.complain(err)
		}
		if err != nil {
			continue
		}
		published, err := publication.isLive(r.roots)
		if err != nil {
			return nil, err
		}
		if published {
			live = append(live, publication)
		} else if err := r.remove(name); err != nil {
			return nil, err
		}
	}
	return live, nil
}

// isLive reports whether a device is mounted at the target.
func (p Publication) isLive(roots roots) (bool, error) {
	place, err := roots.openPlace(p.Target)
	if noDir(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the directory of target_path: %w", err)
	}
	defer place.Close()
	info, found, err := place.stat()
	if err != nil {
		return false, fmt.Errorf("look at target_path: %w", err)
	}
	return found && isPublished(info), nil
}

// write makes a record in place of one with that name. A crash on the way leaves
// none, which is what a repeated call expects.
func (r records) write(name, text string) error {
	path := filepath.Join(r.dir, name)
	err := os.Symlink(text, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.Mkdir(r.dir, 0o700); err != nil {
			return fmt.Errorf("make the directory for the records of a volume: %w", err)
		}
		crashpoint.Here("directory for records made")
		err = os.Symlink(text, path)
	case errors.Is(err, fs.ErrExist):
		if err := r.remove(name); err != nil {
			return err
		}
		err = os.Symlink(text, path)
	}
	if errors.Is(err, syscall.ENAMETOOLONG) {
		return fmt.Errorf("%w: the volume_id or target_path is too long to be recorded: %w", volume.ErrInvalid, err)
	}
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	crashpoint.Here("record written")
	return nil
}

func (r records) remove(name string) error {
	if err := syscall.Unlink(filepath.Join(r.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record %s of %s: %w", name, r.dir, err)
	}
	crashpoint.Here("record removed")
	return nil
}

// removeAll forgets the volume.
func (r records) removeAll() error {
	if err := os.RemoveAll(r.dir); err != nil {
		return fmt.Errorf("remove the records of a volume: %w", err)
	}
	crashpoint.Here("records removed")
	return nil
}

// readNames returns the names in a directory, none where there is no such directory.
func readNames(path string) ([]string, error) {
	names, err := linux.ReadNames(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

// Targets returns the target paths where the volume is published.
func (p *Publisher) Targets(volumeID string) ([]string, error) {
	publications, err := p.records(volumeID).publications()
	targets := make([]string, len(publications))
	for i, publication := range publications {
		targets[i] = publication.Target
	}
	return targets, err
}

// PublishedFor returns what is published for a pod: by volume_id, whether only for
// reading. Kubelet names the target of a block volume after the UID of the pod
// (pkg/volume/csi/csi_block.go in Kubernetes).
func (p *Publisher) PublishedFor(podUID string) (readOnly map[string]bool, err error) {
	all, err := p.AllStaged()
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for _, staged := range all {
		publications, err := p.records(staged.VolumeID).publications()
		if err != nil {
			return nil, err
		}
		for _, publication := range publications {
			if filepath.Base(publication.Target) == podUID {
				found[staged.VolumeID] = publication.ReadOnly
			}
		}
	}
	return found, nil
}
