package hotplug

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/crashpoint"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// record is what is written down of an attachment before anything is done for
// it.
type record struct {
	Attachment
	// Boot is the ID of the boot (random(4)): process numbers begin anew with each.
	Boot string `json:"boot"`
	// Namespace is the PID namespace that the numbers of processes are counted in
	// (pid_namespaces(7)).
	Namespace string `json:"namespace"`
	// Node is the node in the container. Which processes opened it tells who holds
	// the device through this attachment, where others have the device too.
	Node linux.FileID `json:"node"`
	// Claimed says that the device is, or is about to be, claimed for the
	// attachment alone.
	Claimed bool `json:"claimed,omitempty"`
	// Revoke says that the device is to be taken also from those who have it open.
	Revoke bool `json:"revoke,omitempty"`
}

const recordSuffix = ".json"

// records are the records of the attachments of this node, one file for each.
type records struct {
	dir  string
	boot string
	// namespace is the plugin's PID namespace.
	namespace string
}

// all returns the records of this boot, and removes those of earlier ones, whose
// containers have ended.
func (r records) all() ([]record, error) {
	names, err := linux.ReadNames(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the records of attachments: %w", err)
	}
	var all []record
	for _, name := range names {
		if !strings.HasSuffix(name, recordSuffix) {
			continue // A file that a crash left half written.
		}
		one, err := r.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // It was removed meanwhile.
		}
		if err != nil {
			return nil, err
		}
		if one.Boot == r.boot {
			all = append(all, one)
		} else if err := r.remove(one.ID); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// checkVisible returns an error for a record whose container cannot be seen from
// here, which must not be taken for one that has ended.
func (r records) checkVisible(one record) error {
	if one.Namespace == r.namespace {
		return nil
	}
	return fmt.Errorf("%w: attachment %s was made by a plugin in the PID namespace %s, and this one is in %s: it cannot see the container; run it with hostPID: true, as before", volume.ErrPrecondition, one.ID, one.Namespace, r.namespace)
}

func (r records) read(name string) (record, error) {
	path := filepath.Join(r.dir, name)
	text, err := os.ReadFile(path)
	if err != nil {
		return record{}, fmt.Errorf("read the record of an attachment: %w", err)
	}
	var one record
	if err := json.Unmarshal(text, &one); err != nil {
		return record{}, fmt.Errorf("read the record of an attachment: %s: %w; if it cannot be mended, remove it: what it granted is then taken back", path, err)
	}
	return one, nil
}

// write makes the record durable: after a crash it is there as it was before, or
// as it is now.
func (r records) write(one record) error {
	one.Boot, one.Namespace = r.boot, r.namespace
	text, err := json.Marshal(one)
	if err != nil {
		return fmt.Errorf("write the record of an attachment: %w", err)
	}
	if err := r.replace(one.ID, text); err != nil {
		return fmt.Errorf("write the record of an attachment: %w", err)
	}
	crashpoint.Here("attachment recorded as " + string(one.State))
	return nil
}

func (r records) replace(id string, text []byte) error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(r.dir, id+recordSuffix)
	file, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return r.sync()
}

func (r records) remove(id string) error {
	err := os.Remove(filepath.Join(r.dir, id+recordSuffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of an attachment: %w", err)
	}
	if err := r.sync(); err != nil {
		return fmt.Errorf("remove the record of an attachment: %w", err)
	}
	crashpoint.Here("attachment forgotten")
	return nil
}

// sync makes durable which records there are.
func (r records) sync() error {
	dir, err := os.Open(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
