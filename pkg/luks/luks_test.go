package luks_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/luks"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

var (
	sysfs = blockdev.NewSysfs("/sys")
	id    = volume.ID{Pool: "files", Name: "pvc-0a1b2c3d-1111-2222-3333-444455556666", Node: "node-1"}
	key   = []byte("a key of some bytes, the last of them \x00\n")
)

const header = 16 * rig.MiB

// newMappings returns mappings whose keys are derived at once.
func newMappings(t *testing.T) *luks.Mappings {
	t.Helper()
	rig.RequireRoot(t)
	rig.RequireProgram(t, "cryptsetup")
	return luks.New(program.New(""), sysfs, luks.KDF{Kind: "pbkdf2", Iterations: 1000})
}

// prepare makes or verifies the header of a volume on a disk.
func prepare(t *testing.T, m *luks.Mappings, id volume.ID, source volume.Source, disk *rig.Disk) (damage, err error) {
	t.Helper()
	device, err := blockdev.Open(disk.Path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	return m.Prepare(rig.Context(t), id, source, device, key)
}

// opens reports whether a key opens the header on a disk, for cryptsetup itself.
func opens(t *testing.T, path string, key []byte) bool {
	t.Helper()
	command := exec.CommandContext(rig.Context(t), "cryptsetup", "open", "--test-passphrase", "--key-file", "-", path)
	command.Stdin = bytes.NewReader(key)
	return command.Run() == nil
}

// The header is what cryptsetup would have made there, and only there.
func TestHeaderIsMade(t *testing.T) {
	for _, blockSize := range []uint32{512, 4096} {
		t.Run(fmt.Sprint(blockSize), func(t *testing.T) {
			m := newMappings(t)
			disk := rig.NewDiskWithBlockSize(t, 40*rig.MiB, blockSize)
			for range 2 {
				damage, err := prepare(t, m, id, volume.Source{}, disk)
				if err != nil || damage != nil {
					t.Fatalf("%v, %v", damage, err)
				}
			}
			if !opens(t, disk.Path, key) || opens(t, disk.Path, key[:len(key)-1]) {
				t.Error("the key does not open it, or another one does")
			}
			if rest := rig.ReadAt(t, disk.Path, 24*rig.MiB, header); strings.Trim(rest, "\x00") != "" {
				t.Error("something was written behind the header")
			}
			dump, err := exec.CommandContext(rig.Context(t), "cryptsetup", "luksDump", disk.Path).CombinedOutput()
			rig.Must(t, err)
			for _, want := range []string{
				"pvc-0a1b2c3d111122223333444455556666", "rawblock:files", "offset: 16777216 [bytes]", "length: (whole device)",
				fmt.Sprintf("sector: %d [bytes]", blockSize), "cipher: aes-xts-plain64",
			} {
				if !strings.Contains(string(dump), want) {
					t.Errorf("%q is missing in\n%s", want, dump)
				}
			}
		})
	}
}

// The cost of a key is what is said, and is not measured.
func TestArgon2id(t *testing.T) {
	newMappings(t)
	m := luks.New(program.New(""), sysfs, luks.Argon2id)
	disk := rig.NewDisk(t, 20*rig.MiB)
	if _, err := prepare(t, m, id, volume.Source{}, disk); err != nil {
		t.Fatal(err)
	}
	dump, err := exec.CommandContext(rig.Context(t), "cryptsetup", "luksDump", disk.Path).CombinedOutput()
	rig.Must(t, err)
	text := strings.Join(strings.Fields(string(dump)), " ")
	for _, want := range []string{"PBKDF: argon2id", "Time cost: 4", "Memory: 65536"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, dump)
		}
	}
}

// A device that has anything on it, or does not belong to the volume, is left alone.
func TestNothingIsOverwritten(t *testing.T) {
	m := newMappings(t)
	clone := volume.Source{Volume: "another"}
	for name, test := range map[string]struct {
		spoil  func(t *testing.T, path string)
		source volume.Source
		want   error
		says   string
	}{
		"a byte at the beginning":      {writes("x", 0), volume.Source{}, volume.ErrPrecondition, "data at byte 0"},
		"a byte behind the header":     {writes("x", header+5000), volume.Source{}, volume.ErrPrecondition, "data at byte 16782216"},
		"the last byte looked at":      {writes("x", 2*header-1), volume.Source{}, volume.ErrPrecondition, "data at byte 33554431"},
		"a filesystem":                 {filesystem, volume.Source{}, volume.ErrPrecondition, "data at byte 1025"},
		"a filesystem in a copy":       {filesystem, clone, volume.ErrPrecondition, "data at byte 1025"},
		"the header of another volume": {headerOf(volume.ID{Pool: "files", Name: "other"}), volume.Source{}, volume.ErrMismatch, `"other"`},
		"the header of another pool":   {headerOf(volume.ID{Pool: "fast", Name: id.Name}), volume.Source{}, volume.ErrMismatch, `"rawblock:fast"`},
		"the same in a copy":           {headerOf(volume.ID{Pool: "fast", Name: id.Name}), clone, volume.ErrMismatch, `"rawblock:fast"`},
		"another volume's mark":        {writes("rawblock-csi: unfinished LUKS2 header of files/other", 0), volume.Source{}, volume.ErrMismatch, "files/other"},
		"another pool's, in a copy":    {writes("rawblock-csi: unfinished LUKS2 header of fast/other", 0), clone, volume.ErrMismatch, "fast/other"},
	} {
		t.Run(name, func(t *testing.T) {
			disk := rig.NewDisk(t, 40*rig.MiB)
			test.spoil(t, disk.Path)
			before := rig.ReadAt(t, disk.Path, 40*rig.MiB, 0)
			_, err := prepare(t, m, id, test.source, disk)
			if !errors.Is(err, test.want) || !strings.Contains(fmt.Sprint(err), test.says) {
				t.Errorf("got %v, want %v with %q", err, test.want, test.says)
			}
			if rig.ReadAt(t, disk.Path, 40*rig.MiB, 0) != before {
				t.Error("something was written")
			}
		})
	}
}

func writes(text string, offset int64) func(*testing.T, string) {
	return func(t *testing.T, path string) { rig.WriteAt(t, path, text, offset) }
}

func filesystem(t *testing.T, path string) {
	rig.Must(t, exec.CommandContext(rig.Context(t), "mkfs.ext4", "-q", path).Run())
}

func headerOf(id volume.ID) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		device, err := blockdev.Open(path, sysfs)
		rig.Must(t, err)
		defer device.Close()
		_, err = newMappings(t).Prepare(rig.Context(t), id, volume.Source{}, device, key)
		rig.Must(t, err)
	}
}

// What was cut off is made anew; one damaged copy is no loss.
func TestUnfinishedAndDamagedHeaders(t *testing.T) {
	m := newMappings(t)
	mark := "rawblock-csi: unfinished LUKS2 header of "
	for name, test := range map[string]struct {
		spoil  func(t *testing.T, path string)
		source volume.Source
		damage string
	}{
		"the mark alone":           {writes(mark+id.Pool+"/"+id.Name, 0), volume.Source{}, ""},
		"the mark and garbage":     {both(writes(mark+id.Pool+"/"+id.Name, 0), writes("SKUL\xba\xbe garbage", 16384)), volume.Source{}, ""},
		"all but the last write":   {both(headerOf(id), writes(mark+id.Pool+"/"+id.Name+"\x00", 0)), volume.Source{}, ""},
		"the mark of its source":   {writes(mark+id.Pool+"/other", 0), volume.Source{Snapshot: "s"}, ""},
		"the header of its source": {headerOf(volume.ID{Pool: "files", Name: "other"}), volume.Source{Snapshot: "s"}, ""},
		"no first copy":            {both(headerOf(id), writes("\x00\x00", 0)), volume.Source{}, "first copy: there is none"},
		"a wrong byte in it":       {both(headerOf(id), writes("\xff", 16383)), volume.Source{}, "first copy: its checksum"},
		"no second copy":           {both(headerOf(id), writes("\x00\x00", 16384)), volume.Source{}, "second copy: there is none"},
	} {
		t.Run(name, func(t *testing.T) {
			disk := rig.NewDisk(t, 40*rig.MiB)
			test.spoil(t, disk.Path)
			damage, err := prepare(t, m, id, test.source, disk)
			if err != nil || !strings.Contains(fmt.Sprint(damage), test.damage) {
				t.Fatalf("%v; damage %v, want %q", err, damage, test.damage)
			}
			if !opens(t, disk.Path, key) {
				t.Error("the key does not open it")
			}
			if damage, err := prepare(t, m, id, test.source, disk); err != nil || damage != nil {
				t.Errorf("after cryptsetup: %v, damage %v", err, damage)
			}
		})
	}
}

func both(a, b func(*testing.T, string)) func(*testing.T, string) {
	return func(t *testing.T, path string) { a(t, path); b(t, path) }
}

func TestDevicesThatCannotBePrepared(t *testing.T) {
	m := newMappings(t)
	small := rig.NewDisk(t, header)
	if _, err := prepare(t, m, id, volume.Source{}, small); !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), "for the header alone") {
		t.Errorf("a device as large as the header: %v", err)
	}
	used := rig.NewDisk(t, 40*rig.MiB)
	claim, err := os.OpenFile(used.Path, os.O_RDONLY|os.O_EXCL, 0)
	rig.Must(t, err)
	defer claim.Close()
	if _, err := prepare(t, m, id, volume.Source{}, used); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("a device that somebody has claimed: %v", err)
	}
}

// Where there is no device-mapper nothing is opened, and nothing can be open. On a machine
// that has it, nothing is open either.
func TestWithoutDeviceMapper(t *testing.T) {
	m := newMappings(t)
	disk := rig.NewDisk(t, 40*rig.MiB)
	device, err := blockdev.Open(disk.Path, sysfs)
	rig.Must(t, err)
	defer device.Close()
	if m.Check(t.Context()) == nil {
		if _, err := m.Find(t.Context(), id, device); !errors.Is(err, volume.ErrPrecondition) {
			t.Errorf("find: %v", err)
		}
		if err := m.Resize(t.Context(), id, device); !errors.Is(err, volume.ErrPrecondition) {
			t.Errorf("resize: %v", err)
		}
		return
	}
	for name, call := range map[string]func() error{
		"check":  func() error { return m.Check(t.Context()) },
		"open":   func() error { _, err := m.Open(t.Context(), id, volume.Source{}, device, [][]byte{key}); return err },
		"find":   func() error { _, err := m.Find(t.Context(), id, device); return err },
		"resize": func() error { return m.Resize(t.Context(), id, device) },
	} {
		if err := call(); !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), "device-mapper") {
			t.Errorf("%s: %v", name, err)
		}
	}
	rig.Must(t, m.Close(t.Context(), id))
	if content := rig.ReadAt(t, disk.Path, 40*rig.MiB, 0); strings.Trim(content, "\x00") != "" {
		t.Error("something was written")
	}
}

func TestKeyDirectory(t *testing.T) {
	dir := t.TempDir()
	keys := luks.KeyDirectory(dir)
	write := func(name, content string, mode os.FileMode) {
		path := filepath.Join(dir, name)
		rig.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		rig.Must(t, os.WriteFile(path, []byte(content), mode))
		rig.Must(t, os.Chmod(path, mode))
	}
	good := strings.Repeat("k", luks.MinKey)
	write("good", good, 0o400)
	write("changed", good, 0o600)
	write("changed.previous", good+"\n", 0o400)
	// As kubelet mounts a Secret.
	write("..2026_11_24/linked", good, 0o400)
	rig.Must(t, os.Symlink("..2026_11_24", dir+"/..data"))
	rig.Must(t, os.Symlink("..data/linked", dir+"/linked"))
	for name, want := range map[string][]string{"good": {good}, "changed": {good, good + "\n"}, "linked": {good}} {
		got, err := keys.Keys(name)
		if err != nil || len(got) != len(want) || string(got[0]) != want[0] || string(got[len(got)-1]) != want[len(want)-1] {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}

	outside := filepath.Join(t.TempDir(), "secret")
	rig.Must(t, os.WriteFile(outside, []byte(good), 0o400))
	rig.Must(t, os.Symlink(outside, dir+"/outside"))
	rig.Must(t, exec.CommandContext(t.Context(), "mkfifo", "-m", "400", dir+"/pipe").Run())
	rig.Must(t, os.Mkdir(dir+"/directory", 0o700))
	write("foreign", good, 0o400)
	rig.Must(t, os.Chown(dir+"/foreign", 65534, 65534))
	write("group", good, 0o440)
	write("world", good, 0o404)
	write("short", good[1:], 0o400)
	write("long", strings.Repeat("k", luks.MaxKey+1), 0o400)
	write("half", good, 0o400)
	write("half.previous", good[1:], 0o400)
	for name, want := range map[string]error{
		"absent": volume.ErrPrecondition, "outside": volume.ErrPrecondition, "pipe": volume.ErrPrecondition, "directory": volume.ErrPrecondition,
		"foreign": volume.ErrPrecondition, "group": volume.ErrPrecondition, "world": volume.ErrPrecondition, "short": volume.ErrInvalid, "long": volume.ErrInvalid, "half": volume.ErrInvalid,
		"": volume.ErrInvalid, ".": volume.ErrInvalid, "..": volume.ErrInvalid, "../x": volume.ErrInvalid, "a/b": volume.ErrInvalid, "-x": volume.ErrInvalid, "a\x00": volume.ErrInvalid,
	} {
		if got, err := keys.Keys(name); !errors.Is(err, want) || got != nil {
			t.Errorf("%q: %q, %v; want %v", name, got, err, want)
		} else if strings.Contains(err.Error(), "kkkk") {
			t.Errorf("%q: the error shows the key: %v", name, err)
		}
	}
	if _, err := luks.KeyDirectory(dir + "/none").Keys("good"); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("without a directory: %v", err)
	}
}

// Whatever is read, it is a header only where its checksum holds.
func FuzzParseHeader(f *testing.F) {
	f.Add([]byte("LUKS\xba\xbe\x00\x02\x00\x00\x00\x00\x00\x00\x40\x00"))
	f.Add(bytes.Repeat([]byte{0xff}, 32<<10))
	f.Fuzz(func(t *testing.T, copies []byte) {
		if uuid, errs := luks.ParseHeader(copies); errs[0] == nil || errs[1] == nil {
			t.Errorf("it is the header of %q (%v)", uuid, errs)
		}
	})
}
