package linux_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestStatAt(t *testing.T) {
	rig.RequireRoot(t)
	dir := t.TempDir()
	place := openDir(t, dir)
	for _, test := range []struct {
		name string
		make func(path string) error
		want linux.FileInfo
		says string
	}{
		{"file", func(path string) error { return os.WriteFile(path, []byte("12345"), 0o600) }, linux.FileInfo{Size: 5}, "a regular file"},
		{"directory", func(path string) error { return os.Mkdir(path, 0o700) }, linux.FileInfo{Type: fs.ModeDir}, "a directory"},
		{"link", func(path string) error { return os.Symlink("/dev/null", path) }, linux.FileInfo{Type: fs.ModeSymlink}, "a symbolic link"},
		{"dangling", func(path string) error { return os.Symlink("nowhere", path) }, linux.FileInfo{Type: fs.ModeSymlink}, "a symbolic link"},
		{"pipe", func(path string) error { return unix.Mkfifo(path, 0o600) }, linux.FileInfo{Type: fs.ModeNamedPipe}, "a named pipe"},
		{"socket", listenOnce, linux.FileInfo{Type: fs.ModeSocket}, "a socket"},
		{
			"block", func(path string) error { return unix.Mknod(path, unix.S_IFBLK, int(unix.Mkdev(259, 70000))) },
			linux.FileInfo{Type: fs.ModeDevice, Device: linux.DeviceNumber{Major: 259, Minor: 70000}},
			"a block device",
		},
		{
			"char", func(path string) error { return unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(1, 3))) },
			linux.FileInfo{Type: fs.ModeDevice | fs.ModeCharDevice, Device: linux.DeviceNumber{Major: 1, Minor: 3}},
			"a character device",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			rig.Must(t, test.make(filepath.Join(dir, test.name)))
			got, err := linux.StatAt(place, test.name)
			rig.Must(t, err)
			if test.want.Type != 0 {
				got.Size = 0 // That of anything else has no meaning here.
			}
			wantFileID(t, filepath.Join(dir, test.name), got)
			if above, err := linux.Stat(place); err != nil || got.Mount != above.Mount {
				t.Errorf("it is on mount %d, its directory on %d (%v)", got.Mount, above.Mount, err)
			}
			got.ID, got.Allocated, got.Mount = linux.FileID{}, 0, 0
			if got != test.want || got.IsBlockDevice() != (test.name == "block") {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if says := linux.TypeName(got.Type); says != test.says {
				t.Errorf("it is called %q, want %q", says, test.says)
			}
			opened, err := linux.OpenPathAt(place, test.name)
			rig.Must(t, err)
			defer opened.Close()
			if info, err := linux.Stat(opened); err != nil || info.Type != test.want.Type {
				t.Errorf("OpenPathAt opened %+v (%v), want type %v", info, err, test.want.Type)
			}
		})
	}
	if _, err := linux.StatAt(place, "missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing entry: %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := linux.OpenPathAt(place, "missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening a missing entry: %v, want %v", err, fs.ErrNotExist)
	}
}

func listenOnce(path string) error {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return err
	}
	listener.SetUnlinkOnClose(false)
	return listener.Close()
}

// A handle stays on what was opened when the directory is moved, and something else
// is put in its place.
func TestHandlesFollowTheFile(t *testing.T) {
	dir := t.TempDir()
	rig.Must(t, os.Mkdir(dir+"/a", 0o700))
	place := openDir(t, dir+"/a")
	rig.Must(t, os.Rename(dir+"/a", dir+"/b"))
	rig.Must(t, os.Symlink("/", dir+"/a"))
	rig.Must(t, linux.CreateFile(place, "file"))
	if _, err := os.Stat(dir + "/b/file"); err != nil {
		t.Errorf("the file was made elsewhere: %v", err)
	}
}

func TestCreateFileTakesNothingOver(t *testing.T) {
	dir := t.TempDir()
	place := openDir(t, dir)
	newFile(t, dir+"/file")
	rig.Must(t, os.Symlink(dir+"/made", dir+"/link"))
	for _, name := range []string{"file", "link"} {
		if err := linux.CreateFile(place, name); !errors.Is(err, fs.ErrExist) {
			t.Errorf("CreateFile over a %s: %v, want %v", name, err, fs.ErrExist)
		}
	}
	if _, err := os.Lstat(dir + "/made"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CreateFile followed the link: %v", err)
	}
	rig.Must(t, linux.CreateFile(place, "new"))
	if info, err := os.Lstat(dir + "/new"); err != nil || info.Mode() != 0o600 || info.Size() != 0 {
		t.Errorf("made %v (%v), want an empty file of mode 0600", info, err)
	}
}

func TestRemoveFile(t *testing.T) {
	dir := t.TempDir()
	place := openDir(t, dir)
	rig.Must(t, os.Symlink(newFile(t, dir+"/file"), dir+"/link"))
	rig.Must(t, os.Mkdir(dir+"/directory", 0o700))
	rig.Must(t, linux.RemoveFile(place, "link"))
	if _, err := os.Lstat(dir + "/file"); err != nil {
		t.Errorf("what the link leads to has gone: %v", err)
	}
	if err := linux.RemoveFile(place, "directory"); !errors.Is(err, unix.EISDIR) {
		t.Errorf("removing a directory: %v, want %v", err, unix.EISDIR)
	}
	if err := linux.RemoveFile(place, "link"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removing it again: %v, want %v", err, fs.ErrNotExist)
	}
}

func TestOpenDirRefusesFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := linux.OpenDir(newFile(t, dir+"/file")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("got %v, want %v", err, unix.ENOTDIR)
	}
}

func TestReopen(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	node := handle(t, disk.Path)
	first, err := linux.Reopen(node, true)
	rig.Must(t, err)
	defer first.Close()
	if _, err := linux.Reopen(node, true); !errors.Is(err, unix.EBUSY) {
		t.Errorf("claiming it twice: %v, want %v", err, unix.EBUSY)
	}
	reader, err := linux.Reopen(node, false)
	rig.Must(t, err) // A claim keeps nobody from reading.
	defer reader.Close()
	if _, err := unix.Pwrite(int(reader.Fd()), make([]byte, 512), 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("writing to what is open for reading: %v, want %v", err, unix.EBADF)
	}
}

func TestOpenDeviceAtDoesNotFollowLinks(t *testing.T) {
	disk, dir := rig.NewDisk(t, rig.MiB), t.TempDir()
	rig.Must(t, os.Symlink(disk.Path, dir+"/link"))
	if _, err := linux.OpenDeviceAt(openDir(t, dir), "link"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link: %v, want %v", err, unix.ELOOP)
	}
	opened, err := linux.OpenDeviceAt(openDir(t, filepath.Dir(disk.Path)), filepath.Base(disk.Path))
	rig.Must(t, err)
	defer opened.Close()
	if size, err := linux.BlockSize(opened); err != nil || size != rig.MiB || opened.Name() != disk.Path {
		t.Errorf("opened %s of %d bytes (%v), want %s", opened.Name(), size, err, disk.Path)
	}
}

func TestReadNames(t *testing.T) {
	for _, count := range []int{0, 1, 1000} { // More than one call of the kernel can tell.
		dir, want := t.TempDir(), []string{}
		for i := range count {
			want = append(want, fmt.Sprintf("%04d-%s", i, strings.Repeat("x", 50)))
			newFile(t, dir+"/"+want[i])
		}
		got, err := linux.ReadNames(dir)
		if slices.Sort(got); err != nil || !slices.Equal(got, want) {
			t.Errorf("read %d names (%v), want %d", len(got), err, count)
		}
	}
	if _, err := linux.ReadNames(t.TempDir() + "/missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := linux.ReadNames(newFile(t, t.TempDir()+"/file")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file: %v, want %v", err, unix.ENOTDIR)
	}
}

func TestReadLink(t *testing.T) {
	dir := t.TempDir()
	for i, text := range []string{"x", "with space and\nline", strings.Repeat("x", unix.PathMax-1)} {
		link := fmt.Sprintf("%s/%d", dir, i)
		rig.Must(t, os.Symlink(text, link))
		if got, err := linux.ReadLink(link); err != nil || got != text {
			t.Errorf("read %d bytes (%v), want %d", len(got), err, len(text))
		}
	}
	if _, err := linux.ReadLink(dir + "/missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing link: %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := linux.ReadLink(newFile(t, dir+"/file")); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a file: %v, want %v", err, unix.EINVAL)
	}
}

func TestDescriptorsDoNotReachChildren(t *testing.T) {
	dir := t.TempDir()
	place := openDir(t, dir)
	file := handle(t, newFile(t, dir+"/file"))
	entry, err := linux.OpenPathAt(place, "file")
	rig.Must(t, err)
	defer entry.Close()
	reopened, err := linux.Reopen(file, false)
	rig.Must(t, err)
	defer reopened.Close()
	for name, opened := range map[string]*linux.File{"OpenDir": place, "OpenPath": file, "OpenPathAt": entry, "Reopen": reopened} {
		if flags, err := unix.FcntlInt(opened.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: flags %#x (%v), want FD_CLOEXEC", name, flags, err)
		}
	}
}

// wantFileID checks the facts that differ from file to file.
func wantFileID(t *testing.T, path string, got linux.FileInfo) {
	t.Helper()
	var want unix.Stat_t
	rig.Must(t, unix.Lstat(path, &want))
	id := linux.FileID{Device: linux.DeviceNumber{Major: unix.Major(want.Dev), Minor: unix.Minor(want.Dev)}, Inode: want.Ino}
	if got.ID != id || got.Allocated != uint64(want.Blocks)*512 {
		t.Errorf("got %+v, want %+v with %d blocks", got, id, want.Blocks)
	}
}
