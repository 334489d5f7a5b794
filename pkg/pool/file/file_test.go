package file_test

import (
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/test/contract"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// medium is a directory.
type medium struct {
	options file.Options
	pool    *file.Pool
}

func (m *medium) Open(t testing.TB) driver.Pool {
	t.Helper()
	return m.open(t)
}

func (m *medium) open(t testing.TB) *file.Pool {
	t.Helper()
	if m.pool != nil {
		m.pool.Close()
	} else {
		t.Cleanup(func() { m.pool.Close() })
	}
	ctx := klog.NewContext(t.Context(), logr.Discard())
	pool, err := file.New(ctx, "files", m.options, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	m.pool = pool
	return pool
}

// The contract, on each filesystem that matters, and with each block size.
func TestContract(t *testing.T) {
	for name, test := range map[string]struct {
		filesystem string
		capacity   uint64
		parameters map[string]string
	}{
		"ext4":                {"ext4", 64 * rig.MiB, nil},
		"ext4 thin":           {"ext4", 64 * rig.MiB, map[string]string{"thin": "true"}},
		"xfs":                 {"xfs", 64 * rig.MiB, nil},
		"xfs thin, 4 KiB":     {"xfs", 64 * rig.MiB, map[string]string{"thin": "true", "blockSize": "4096"}},
		"btrfs":               {"btrfs", 64 * rig.MiB, nil},
		"xfs, all it has":     {"xfs", 0, nil},
		"the machine's own":   {"", 64 * rig.MiB, nil},
		"a filesystem in RAM": {"tmpfs", 64 * rig.MiB, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // Each has disks of its own, and mostly waits for them.
			contract.Suite{
				New: func(t testing.TB) contract.Medium {
					return &medium{options: file.Options{Directory: directory(t, test.filesystem), Capacity: test.capacity}}
				},
				Parameters: test.parameters,
			}.Run(t)
		})
	}
}

func directory(t testing.TB, filesystem string) string {
	t.Helper()
	switch filesystem {
	case "":
		return t.TempDir()
	case "tmpfs":
		return rig.StateDir(t)
	}
	return rig.Filesystem(t, filesystem, 320*rig.MiB)
}
