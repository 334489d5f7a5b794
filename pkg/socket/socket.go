// Package socket makes the unix sockets on which the plugin serves: for root alone,
// and in nobody's place.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// MaxPath is the length of the longest path of a unix socket in bytes (unix(7),
// sun_path), less the final zero.
const MaxPath = 107

// Listen listens on a unix socket that only root may use. A socket that nobody
// answers is left over from a process that was killed, and is replaced.
//
// Errors: volume.ErrPrecondition where another process answers, or something
// else is at the path, or others than root can change its directory; volume.ErrInvalid where the path is too long.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > MaxPath {
		return nil, fmt.Errorf("%w: the path %s is longer than the %d bytes of a unix socket's", volume.ErrInvalid, path, MaxPath)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("look at the socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%w: %s is not a socket; move it away or choose another path", volume.ErrPrecondition, path)
	default:
		if err := removeStale(ctx, path); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make the directory of the socket: %w", err)
	}
	if err := linux.CheckTrusted(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("%w: the directory of the socket is not safe: %w", volume.ErrPrecondition, err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect the socket: %w", err), listener.Close())
	}
	return listener, nil
}

func removeStale(ctx context.Context, path string) error {
	dialer := net.Dialer{Timeout: 10 * time.Second}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close() //nolint:errcheck,gosec // Nothing was written.
		return fmt.Errorf("%w: another process serves the socket %s; stop it first", volume.ErrPrecondition, path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("see whether the socket %s is in use: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the stale socket: %w", err)
	}
	return nil
}
