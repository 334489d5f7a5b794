package hotplug

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Recorded is the record of an attachment, whether it counts or not.
type Recorded struct {
	Attachment
	// File is where it stands.
	File string
	// Current says that it was made in this boot: of an earlier one no container is
	// left.
	Current bool
	// Err says why it cannot be read; there is no Attachment then.
	Err error
}

// Survey returns the records of all attachments in the state directory of a node, in the
// order of their files, and changes none.
func Survey(stateDir string) ([]Recorded, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id") // random(4)
	if err != nil {
		return nil, fmt.Errorf("tell this boot from the last one: %w", err)
	}
	r := records{dir: filepath.Join(stateDir, recordsDir)}
	names, err := linux.ReadNames(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the records of attachments: %w", err)
	}
	slices.Sort(names)
	var found []Recorded
	for _, name := range names {
		if !strings.HasSuffix(name, recordSuffix) {
			continue
		}
		one, err := r.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		found = append(found, Recorded{
			Attachment: one.Attachment, File: filepath.Join(r.dir, name),
			Current: one.Boot == strings.TrimSpace(string(boot)), Err: err,
		})
	}
	return found, nil
}

// recordsDir is the directory of the records in the state directory.
const recordsDir = "attachments"

// ClaimedBy returns the ID of the attachment that a device is staged for, if it is
// staged for one and not as a volume.
func ClaimedBy(volumeID string) (id string, ok bool) { return strings.CutPrefix(volumeID, claimPrefix) }
