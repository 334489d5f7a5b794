package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// entry is the directory of a volume or snapshot.
type entry struct{ dir string }

func (e entry) data() string   { return filepath.Join(e.dir, "data") }
func (e entry) record() string { return filepath.Join(e.dir, "record.json") }

// record is what is known of a volume or snapshot beside its bytes.
type record struct {
	// BlockSize is the logical block size in bytes.
	BlockSize uint32 `json:"blockSize"`
	// Thin says that no space is reserved for it.
	Thin bool `json:"thin,omitempty"`
	// Snapshot or Volume is what a volume was made from; Volume is also what a
	// snapshot shows.
	Snapshot string `json:"snapshot,omitempty"`
	Volume   string `json:"volume,omitempty"`
	// Encryption is how the driver encrypts it; the pool only keeps it.
	Encryption volume.Encryption `json:"encryption,omitempty"`
	// Created is when it was made.
	Created time.Time `json:"created"`
}

// info describes the volume of the record.
func (r record) info(name string, size uint64) volume.Info {
	return volume.Info{Name: name, Size: size, Source: r.source(), Encryption: r.Encryption}
}

func (r record) source() volume.Source { return volume.Source{Snapshot: r.Snapshot, Volume: r.Volume} }

// parseRecord reads a record, strictly: one that says more than is understood was
// written by a later version.
func parseRecord(content []byte) (record, error) {
	var r record
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		return record{}, err
	}
	if decoder.More() {
		return record{}, errors.New("more than one record")
	}
	if !validBlockSize(r.BlockSize) {
		return record{}, fmt.Errorf("a block size of %d bytes", r.BlockSize)
	}
	if !r.Encryption.Known() {
		return record{}, fmt.Errorf("an unknown encryption %q", r.Encryption)
	}
	return r, nil
}

// read returns the record and what the data is. Errors: volume.ErrNotFound where
// there is no such entry.
func (e entry) read() (record, linux.FileInfo, error) {
	content, err := os.ReadFile(e.record())
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, linux.FileInfo{}, fmt.Errorf("%w: there is nothing at %s", volume.ErrNotFound, e.dir)
	}
	if err != nil {
		return record{}, linux.FileInfo{}, fmt.Errorf("read record: %w", err)
	}
	r, err := parseRecord(content)
	if err != nil {
		return record{}, linux.FileInfo{}, fmt.Errorf("record %s: %w", e.record(), err)
	}
	info, err := e.stat()
	return r, info, err
}

func (e entry) stat() (linux.FileInfo, error) {
	data, err := linux.OpenPath(e.data())
	if err != nil {
		return linux.FileInfo{}, fmt.Errorf("look at data: %w", err)
	}
	defer data.Close()
	return linux.Stat(data)
}

// write makes the record of an entry that is being made.
func (e entry) write(r record) error {
	content, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	file, err := os.OpenFile(e.record(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	_, err = file.Write(append(content, '\n'))
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// list returns the names of the entries in a directory.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the pool: %w", err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}
