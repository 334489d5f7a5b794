package driver

import (
	"fmt"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/socket"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// socketPath returns the path of an endpoint unix:///path or /path.
func socketPath(endpoint string) (string, error) {
	path := strings.TrimPrefix(endpoint, "unix:")
	path = "/" + strings.TrimLeft(path, "/")
	if endpoint != path && endpoint != "unix:"+path && endpoint != "unix://"+path || path == "/" {
		return "", fmt.Errorf("%w: the endpoint %q is not a unix socket such as unix:///csi/csi.sock", volume.ErrInvalid, endpoint)
	}
	if len(path) > socket.MaxPath {
		return "", fmt.Errorf("%w: the endpoint %q is longer than the %d bytes of a unix socket's path", volume.ErrInvalid, endpoint, socket.MaxPath)
	}
	return path, nil
}
