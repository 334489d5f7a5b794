package blockdev_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

var sysfs = blockdev.NewSysfs("/sys")

// open opens the device at path until the test ends.
func open(t *testing.T, path string) *blockdev.Device {
	t.Helper()
	device, err := blockdev.Open(path, sysfs)
	rig.Must(t, err)
	t.Cleanup(device.Close)
	return device
}

// tree is a sysfs: its files by path with their content, which is "-> where it
// leads" for a link.
type tree map[string]string

func (files tree) write(t *testing.T) blockdev.Sysfs {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		path = filepath.Join(root, path)
		rig.Must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		if target, isLink := strings.CutPrefix(content, "-> "); isLink {
			rig.Must(t, os.Symlink(target, path))
			continue
		}
		rig.Must(t, os.WriteFile(path, []byte(content), 0o600))
	}
	return blockdev.NewSysfs(root)
}
