package publish

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Record is what is in the directory of a volume, whether it counts or not.
type Record struct {
	// Dir is the path of the directory.
	Dir string
	// Staged is the device that was staged, if IsStaged says that there is one.
	Staged   Staged
	IsStaged bool
	// Current says that it was staged in this boot: one of an earlier boot does not
	// count.
	Current bool
	// Publications are what was published, also what no longer is.
	Publications []Recorded
	// Views are the read-only views that are published, and Holds the loop devices that
	// hold them and the staged device, as they were set up.
	Views, Holds []blockdev.LoopID
	// Err says what of it cannot be read.
	Err error
}

// Recorded is a publication, and whether a device is mounted at its target.
type Recorded struct {
	Publication
	Live bool
}

// Live returns the publications that count.
func (r Record) Live() []Publication {
	var live []Publication
	for _, one := range r.Publications {
		if one.Live {
			live = append(live, one.Publication)
		}
	}
	return live
}

// Survey returns all records in the state directory of a node, in the order of their
// directories, and changes none. A directory that does not exist has none.
func Survey(state string) ([]Record, error) {
	bootID, err := readBootID()
	if err != nil {
		return nil, err
	}
	all, err := allRecords(state, nil)
	if err != nil {
		return nil, err
	}
	var found []Record
	for _, records := range all {
		if info, err := os.Lstat(records.dir); err == nil && info.IsDir() {
			found = append(found, records.survey(bootID))
		}
	}
	return found, nil
}

func (r records) survey(bootID string) Record {
	found := Record{Dir: r.dir}
	names, err := readNames(r.dir)
	if err != nil {
		found.Err = err
		return found
	}
	slices.Sort(names)
	for _, name := range names {
		text, err := linux.ReadLink(filepath.Join(r.dir, name))
		if err == nil {
			err = found.take(name, text, bootID)
		}
		if err != nil {
			found.Err = errors.Join(found.Err, fmt.Errorf("record %s: %w", filepath.Join(r.dir, name), err))
		}
	}
	return found
}

// take takes in the text of one record.
func (r *Record) take(name, text, bootID string) error {
	switch {
	case name == stagedRecord:
		record, err := parseStaged(text)
		if err != nil {
			return err
		}
		r.Staged = Staged{record.volumeID, record.number, record.seq, record.mode}
		r.IsStaged, r.Current = true, record.bootID == bootID
	case strings.HasPrefix(name, publicationPrefix):
		publication, err := parsePublication(text)
		if err != nil {
			return err
		}
		live, err := publication.isLive(nil)
		if err != nil {
			return err
		}
		r.Publications = append(r.Publications, Recorded{publication, live})
	case name == holdRecord || strings.HasPrefix(name, viewPrefix):
		is, err := parseLoops(text)
		if err != nil {
			return err
		}
		if is.bootID != bootID {
			return nil
		}
		r.Holds = append(r.Holds, is.hold)
		if name != holdRecord {
			r.Views = append(r.Views, is.view())
		}
	default:
		return errors.New("this plugin writes none of that name")
	}
	return nil
}
