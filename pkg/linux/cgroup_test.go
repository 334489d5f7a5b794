package linux_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The kernel keeps attributes of a cgroup for as long as it is there.
func TestAttributes(t *testing.T) {
	cgroup := newCgroup(t)
	const name = "trusted.rawblock-test.7:0"
	names := func() []string {
		t.Helper()
		found, err := linux.Attributes(cgroup.Name())
		rig.Must(t, err)
		return found
	}
	want := func(value string, found bool) {
		t.Helper()
		got, has, err := linux.Attribute(cgroup, name)
		if err != nil || got != value || has != found {
			t.Errorf("the attribute is %q, %t, %v; want %q, %t", got, has, err, value, found)
		}
		if slices.Contains(names(), name) != found {
			t.Errorf("the attributes are %q", names())
		}
	}
	want("", false)
	rig.Must(t, linux.RemoveAttribute(cgroup, name))
	for _, value := range []string{"rw node", "", strings.Repeat("x", 1024), "r"} {
		rig.Must(t, linux.SetAttribute(cgroup, name, value))
		want(value, true)
	}
	before := len(names())
	for _, more := range []string{"trusted.rawblock-test.8:0", "trusted.rawblock-test." + strings.Repeat("n", 200)} {
		rig.Must(t, linux.SetAttribute(cgroup, more, "r"))
	}
	if now := names(); len(now) != before+2 {
		t.Errorf("the attributes are %q", now)
	}
	rig.Must(t, linux.RemoveAttribute(cgroup, name))
	want("", false)

	rig.Must(t, linux.SetAttribute(cgroup, name, strings.Repeat("x", 1025)))
	if value, _, err := linux.Attribute(cgroup, name); !errors.Is(err, syscall.ERANGE) {
		t.Errorf("one that is too long is %q, %v", value, err)
	}
	if _, err := linux.Attributes(cgroup.Name() + "/missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of what is not there: %v", err)
	}
}

// A descriptor of a cgroup that was removed is not taken for one that has its name.
func TestAttributesOfRemoved(t *testing.T) {
	const name = "trusted.rawblock-test.7:0"
	path := newCgroup(t).Name() + "/below"
	rig.Must(t, os.Mkdir(path, 0o755))
	removed, err := os.Open(path)
	rig.Must(t, err)
	defer removed.Close()
	rig.Must(t, linux.SetAttribute(removed, name, "r"))
	rig.Must(t, os.Remove(path))
	rig.Must(t, os.Mkdir(path, 0o755))
	defer os.Remove(path)
	if found, err := linux.Attributes(path); err != nil || slices.Contains(found, name) {
		t.Errorf("the new one has the attributes %q, %v", found, err)
	}
	linux.SetAttribute(removed, name, "rw") // Whatever it does, it does nothing to the new one.
	if found, err := linux.Attributes(path); err != nil || slices.Contains(found, name) {
		t.Errorf("the new one has the attributes %q, %v", found, err)
	}
	for what, err := range map[string]error{
		"reading": second(linux.ReadFileAt(removed, "cgroup.procs")), "writing": linux.WriteFileAt(removed, "cgroup.procs", "0"),
	} {
		if !errors.Is(err, syscall.ENODEV) && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestReadAndWriteFileAt(t *testing.T) {
	dir := openDir(t, t.TempDir())
	long := strings.Repeat("0123456789", 2000)
	rig.Must(t, os.WriteFile(dir.Name()+"/file", []byte(long), 0o600))
	if text, err := linux.ReadFileAt(dir, "file"); err != nil || text != long {
		t.Errorf("read are %d bytes, %v", len(text), err)
	}
	rig.Must(t, linux.WriteFileAt(dir, "file", "new"))
	if text, err := linux.ReadFileAt(dir, "file"); err != nil || text != "new"+long[3:] {
		t.Errorf("read are %d bytes, %v", len(text), err)
	}
	rig.Must(t, os.Symlink("file", dir.Name()+"/link"))
	for name, want := range map[string]error{"missing": syscall.ENOENT, "link": syscall.ELOOP} {
		if _, err := linux.ReadFileAt(dir, name); !errors.Is(err, want) {
			t.Errorf("reading %s: %v", name, err)
		}
		if err := linux.WriteFileAt(dir, name, "x"); !errors.Is(err, want) {
			t.Errorf("writing %s: %v", name, err)
		}
	}
	// The kernel's own errors come through.
	if err := linux.WriteFileAt(newCgroup(t), "cgroup.procs", "nonsense"); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("writing nonsense: %v", err)
	}
}
