package signature_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/signature"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// image is a sparse disk in memory: what is written to it by offset.
type image struct {
	size int64
	data map[int64]string
}

// ReadAt reads as a device does.
func (i image) ReadAt(data []byte, offset int64) (int, error) {
	n := max(0, min(int64(len(data)), i.size-offset))
	clear(data[:n])
	for at, text := range i.data {
		if from := at - offset; from >= n || from+int64(len(text)) <= 0 {
			continue
		} else if from < 0 {
			copy(data[:n], text[-from:])
		} else {
			copy(data[from:n], text)
		}
	}
	if n < int64(len(data)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// find looks for data on a disk that can be read.
func find(t testing.TB, disk io.ReaderAt, size int64) []signature.Finding {
	t.Helper()
	found, err := signature.Find(disk, size)
	rig.Must(t, err)
	return found
}

// newFile makes a sparse file that stands for a disk, and returns its path.
func newFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	file, err := os.Create(path)
	rig.Must(t, err)
	defer file.Close()
	rig.Must(t, file.Truncate(size))
	return path
}

// findIn looks for data in a file.
func findIn(t testing.TB, path string) []signature.Finding {
	t.Helper()
	file, err := os.Open(path)
	rig.Must(t, err)
	defer file.Close()
	info, err := file.Stat()
	rig.Must(t, err)
	return find(t, file, info.Size())
}
