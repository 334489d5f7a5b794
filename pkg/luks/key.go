package luks

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The length that a key may have, in bytes: no less than a random key of 128 bits
// takes, and no more than anybody calls a key.
const (
	MinKey = 16
	MaxKey = 4096
)

// CheckKey returns an error unless a key has a length that is accepted. The error
// does not show it. Errors: volume.ErrInvalid.
func CheckKey(key []byte) error {
	if len(key) < MinKey || len(key) > MaxKey {
		return fmt.Errorf("%w: the encryption key has %d bytes; expected %d to %d, such as those of: head -c 32 /dev/urandom | base64 -w0",
			volume.ErrInvalid, len(key), MinKey, MaxKey)
	}
	return nil
}

// previousSuffix ends the name of the file that has the key before a change.
const previousSuffix = ".previous"

// KeyDirectory is a directory of keys: in each file one, as it is, named like the file.
// It may be a Secret that is mounted: links that stay in the directory are followed.
type KeyDirectory string

// Keys returns the key of a name, and that before a change where there is one.
//
// Errors: volume.ErrInvalid for a name that is none, or a key that is too short or too
// long; volume.ErrPrecondition where there is no such key, or others than root could
// read it.
func (d KeyDirectory) Keys(name string) ([][]byte, error) {
	if !volume.KeyName.MatchString(name) {
		return nil, fmt.Errorf("%w: %q cannot be the name of a key; expected letters, digits, dots, hyphens and underscores, with a letter or digit first", volume.ErrInvalid, name)
	}
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return nil, fmt.Errorf("%w: open the directory of keys: %w", volume.ErrPrecondition, err)
	}
	defer root.Close() //nolint:errcheck // Nothing was written.
	key, err := readKey(root, name)
	if err != nil {
		return nil, fmt.Errorf("encryption key %s in %s of this node: %w", name, d, err)
	}
	previous, err := readKey(root, name+previousSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return [][]byte{key}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("encryption key %s%s in %s of this node: %w", name, previousSuffix, d, err)
	}
	return [][]byte{key, previous}, nil
}

// readKey reads a key. Only root may be able to change it or, if it is not, to read it.
func readKey(root *os.Root, name string) ([]byte, error) {
	info, err := root.Stat(name)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file") // Opening a pipe would wait for a writer.
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", volume.ErrPrecondition, err)
	}
	file, err := root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", volume.ErrPrecondition, err)
	}
	defer file.Close() //nolint:errcheck // Nothing was written.
	if info, err = file.Stat(); err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: its mode is %s, and others than its owner must have no access (chmod 0400; defaultMode: 0400 of a Secret's volume)", volume.ErrPrecondition, info.Mode())
	}
	if err := linux.CheckTrustedFile(file); err != nil {
		return nil, fmt.Errorf("%w: %w", volume.ErrPrecondition, err)
	}
	key, err := io.ReadAll(io.LimitReader(file, MaxKey+1))
	if err != nil {
		return nil, err
	}
	return key, CheckKey(key)
}
