package linux_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// Whoever can lead the way elsewhere is found, wherever on it he stands.
func TestCheckTrusted(t *testing.T) {
	rig.RequireRoot(t)
	for name, c := range map[string]struct {
		make func(root string) error
		path string
		want error
	}{
		"safe":                     {func(string) error { return nil }, "safe", nil},
		"a link to it":             {func(root string) error { return os.Symlink("safe", root+"/link") }, "link", nil},
		"links behind links":       {func(root string) error { return chain(root, 0o755) }, "first", nil},
		"a link behind a link":     {func(root string) error { return chain(root, 0o777) }, "first", linux.ErrUntrusted},
		"a sticky directory above": {func(root string) error { return os.Chmod(root, 0o777|os.ModeSticky) }, "safe", nil},
		"a directory above":        {func(root string) error { return os.Chmod(root, 0o777) }, "safe", linux.ErrUntrusted},
		"sticky itself":            {func(root string) error { return os.Chmod(root+"/safe", 0o777|os.ModeSticky) }, "safe", linux.ErrUntrusted},
		"a link of another user": {func(root string) error {
			return errors.Join(os.Symlink("safe", root+"/link"), os.Lchown(root+"/link", 65534, 65534))
		}, "link", linux.ErrUntrusted},
		"a circle": {func(root string) error { return os.Symlink("link", root+"/link") }, "link", unix.ELOOP},
		"a file":   {func(root string) error { return os.WriteFile(root+"/file", nil, 0o600) }, "file", nil},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			rig.Must(t, os.MkdirAll(root+"/safe", 0o755))
			rig.Must(t, c.make(root))
			err := linux.CheckTrusted(filepath.Join(root, c.path))
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// chain makes links to a safe directory, the second of them in a directory with a mode.
func chain(root string, mode os.FileMode) error {
	return errors.Join(os.Mkdir(root+"/between", 0o755), os.Symlink("between/second", root+"/first"),
		os.Symlink("../safe", root+"/between/second"), os.Chmod(root+"/between", mode))
}
