// Package nodelock keeps two processes from working on one node at once: the plugin
// holds the lock of the state directory for as long as it runs, and rawblockctl holds it
// where it does something itself since no plugin runs. Who only looks needs no lock.
//
// The kernel gives it up with the process (flock(2)), however that ends.
package nodelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Lock is the lock of a node, held.
type Lock struct{ file *os.File }

// name is that of the file in the state directory.
const name = "lock"

// again is how often it is looked whether the lock is free.
const again = 100 * time.Millisecond

// Take takes the lock of the state directory, which is made where it is missing, and
// waits for it until ctx ends. Errors: volume.ErrAborted where another process holds
// it still; volume.ErrPrecondition where others than root can change the directory.
func Take(ctx context.Context, stateDir string) (*Lock, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	if err := linux.CheckTrusted(stateDir); err != nil {
		return nil, fmt.Errorf("%w: the state directory is not safe: %w", volume.ErrPrecondition, err)
	}
	file, err := os.OpenFile(filepath.Join(stateDir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	for {
		err := linux.Lock(file)
		if err == nil {
			return &Lock{file}, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock the state directory: %w", err), file.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%w: another rawblock-csi or rawblockctl works on this node: it has the lock %s (see fuser %s)",
				volume.ErrAborted, file.Name(), file.Name()), file.Close())
		case <-time.After(again):
		}
	}
}

// Release gives the lock up.
func (l *Lock) Release() {
	l.file.Close() //nolint:errcheck,gosec // Nothing was written to it.
}
