package static_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

var sysfs = blockdev.NewSysfs("/sys")

func TestWhichPathsMayBeNamed(t *testing.T) {
	disk, dir := rig.NewDisk(t, rig.MiB), resolvedTempDir(t)
	ids, elsewhere := dir+"/by-id", dir+"/elsewhere"
	for _, sub := range []string{ids + "/directory", elsewhere} {
		rig.Must(t, os.MkdirAll(sub, 0o700))
	}
	relative, err := filepath.Rel(ids, disk.Path)
	rig.Must(t, err)
	for path, target := range map[string]string{
		ids + "/disk":           disk.Path,
		ids + "/like-udev":      relative,
		ids + "/again":          "disk",
		ids + "/foreign":        elsewhere + "/node",
		ids + "/null":           "/dev/null",
		ids + "/dangling":       elsewhere + "/nowhere",
		ids + "/directory/disk": disk.Path,
		elsewhere + "/disk":     disk.Path,
		dir + "/by-path":        elsewhere,
		dir + "/by-name":        ids,
		dir + "/by-alias":       ids,
	} {
		rig.Must(t, os.Symlink(target, path))
	}
	for _, node := range []string{ids + "/node", elsewhere + "/node"} {
		rig.Must(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(disk.Number().Major, disk.Number().Minor))))
	}
	rig.Must(t, os.WriteFile(ids+"/file", []byte("x"), 0o600))
	pool := static.New([]string{ids + "/*", dir + "/by-path/*", dir + "/by-name/*", dir + "/gone/*", ids + "/file/*", "/dev/null"}, sysfs)

	for name, test := range map[string]struct {
		path string
		want error
		says string
	}{
		"link to the kernel's node":       {ids + "/disk", nil, ""},
		"relative link":                   {ids + "/like-udev", nil, ""},
		"link to a link":                  {ids + "/again", nil, ""},
		"node in the allowed directory":   {ids + "/node", nil, ""},
		"directory is a link that stays":  {dir + "/by-name/disk", nil, ""},
		"directory is a link that leaves": {dir + "/by-path/disk", volume.ErrInvalid, "leads to " + elsewhere + "/disk, which is not among"},
		"directory is a link not allowed": {dir + "/by-alias/disk", volume.ErrInvalid, "not among"},
		"link to a node made elsewhere":   {ids + "/foreign", volume.ErrInvalid, "leads to " + elsewhere + "/node, which is not among"},
		"no pattern matches":              {disk.Path, volume.ErrInvalid, "not among the devices that this node allows (devices.allow: " + ids + "/*, "},
		"pattern does not reach below":    {ids + "/directory/disk", volume.ErrInvalid, "not among"},
		"missing attribute":               {"", volume.ErrInvalid, "volumeAttributes.device is missing"},
		"relative path":                   {"by-id/disk", volume.ErrInvalid, "not an absolute path"},
		"dot dot":                         {ids + "/../by-id/disk", volume.ErrInvalid, "without . and .."},
		"dot":                             {ids + "/./disk", volume.ErrInvalid, "without . and .."},
		"trailing slash":                  {ids + "/disk/", volume.ErrInvalid, "not an absolute path"},
		"regular file":                    {ids + "/file", volume.ErrInvalid, "it is a regular file"},
		"directory":                       {ids + "/directory", volume.ErrInvalid, "it is a directory"},
		"character device":                {"/dev/null", volume.ErrInvalid, "it is a character device"},
		"link to a character device":      {ids + "/null", volume.ErrInvalid, "it is a character device"},
		"dangling link":                   {ids + "/dangling", volume.ErrNotFound, "check that the disk is attached"},
		"missing":                         {ids + "/missing", volume.ErrNotFound, "check that the disk is attached"},
		"directory is missing":            {dir + "/gone/disk", volume.ErrNotFound, "check that the disk is attached"},
		"directory is a file":             {ids + "/file/disk", volume.ErrNotFound, "check that the disk is attached"},
		"pattern taken literally":         {ids + "/*", volume.ErrNotFound, ""},
	} {
		t.Run(name, func(t *testing.T) {
			device, err := pool.Open(rig.Context(t), map[string]string{"device": test.path})
			if err == nil {
				defer device.Close()
				if device.Number() != disk.Number() {
					t.Errorf("opened %s, want %s", device, disk.Path)
				}
			}
			wantError(t, err, test.want, test.says)
			if err != nil && test.path != "" && !strings.Contains(err.Error(), filepath.Base(filepath.Dir(test.path))) {
				t.Errorf("%q does not name the path", err)
			}
		})
	}
}

// A pin holds exactly or not at all, and the error tells both sides.
func TestPins(t *testing.T) {
	disk := rig.NewDisk(t, 8*rig.MiB)
	pool := static.New(rig.DevicePatterns(), hardware(t, disk, map[string]string{
		"wwid":   "naa.5000c500a1b2c3d4\n",
		"serial": "  S6XNNS0T\n",
	}))
	for name, test := range map[string]struct {
		pins map[string]string
		want error
		says string
	}{
		"none":              {nil, nil, ""},
		"all":               {map[string]string{"wwid": "naa.5000c500a1b2c3d4", "serial": "S6XNNS0T", "size": "8Mi"}, nil, ""},
		"spaces around":     {map[string]string{"wwid": " naa.5000c500a1b2c3d4\n"}, nil, ""},
		"other wwid":        {map[string]string{"wwid": "naa.5000c500ffffffff"}, volume.ErrMismatch, `volumeAttributes.wwid is "naa.5000c500ffffffff", but ` + disk.Path},
		"wwid in capitals":  {map[string]string{"wwid": "NAA.5000C500A1B2C3D4"}, volume.ErrMismatch, `has "naa.5000c500a1b2c3d4"`},
		"part of the wwid":  {map[string]string{"wwid": "naa.5000"}, volume.ErrMismatch, "is it the right disk?"},
		"other serial":      {map[string]string{"serial": "S6XNNS0X"}, volume.ErrMismatch, `volumeAttributes.serial is "S6XNNS0X", but ` + disk.Path},
		"one of two holds":  {map[string]string{"wwid": "naa.5000c500a1b2c3d4", "serial": "x"}, volume.ErrMismatch, "volumeAttributes.serial"},
		"size in bytes":     {map[string]string{"size": "8388608"}, nil, ""},
		"size in Mi":        {map[string]string{"size": "8Mi"}, nil, ""},
		"size in Ki":        {map[string]string{"size": "8192Ki"}, nil, ""},
		"half a Gi":         {map[string]string{"size": "0.0078125Gi"}, nil, ""},
		"endless exponent":  {map[string]string{"size": "1e-2147483647"}, volume.ErrInvalid, "is not a size"},
		"endless, too":      {map[string]string{"size": "9223E7583685477208"}, volume.ErrInvalid, "is not a size"},
		"too large":         {map[string]string{"size": "8388609"}, volume.ErrMismatch, "volumeAttributes.size is 8388609 bytes, but " + disk.Path},
		"too small":         {map[string]string{"size": "8388607"}, volume.ErrMismatch, "has 8388608"},
		"decimal megabytes": {map[string]string{"size": "8M"}, volume.ErrMismatch, "is 8000000 bytes"},
		"no size":           {map[string]string{"size": "large"}, volume.ErrInvalid, `volumeAttributes.size "large" is not a size; write bytes, or a quantity such as 100Gi`},
		"fraction":          {map[string]string{"size": "8388608.5"}, volume.ErrInvalid, "not a whole, positive number"},
		"milli":             {map[string]string{"size": "1m"}, volume.ErrInvalid, "not a whole, positive number"},
		"negative":          {map[string]string{"size": "-8Mi"}, volume.ErrInvalid, "not a whole, positive number"},
		"zero":              {map[string]string{"size": "0"}, volume.ErrInvalid, "not a whole, positive number"},
		"beyond 64 bits":    {map[string]string{"size": "16Ei"}, volume.ErrInvalid, "not a whole, positive number"},
		"inner space":       {map[string]string{"size": "8 Mi"}, volume.ErrInvalid, "is not a size"},
		"empty pin":         {map[string]string{"wwid": ""}, volume.ErrInvalid, "volumeAttributes.wwid is empty"},
		"blank pin":         {map[string]string{"serial": " "}, volume.ErrInvalid, "volumeAttributes.serial is empty"},
		"misspelt pin":      {map[string]string{"wwwid": "naa.5000c500a1b2c3d4"}, volume.ErrInvalid, "volumeAttributes.wwwid is unknown"},
		"wrong unit":        {map[string]string{"size": "8MiB"}, volume.ErrInvalid, "is not a size"},
	} {
		t.Run(name, func(t *testing.T) {
			attributes := map[string]string{"device": disk.Path, "csi.storage.k8s.io/ephemeral": "false"}
			for key, value := range test.pins {
				attributes[key] = value
			}
			device, err := pool.Open(rig.Context(t), attributes)
			if err == nil {
				defer device.Close()
			}
			wantError(t, err, test.want, test.says)
		})
	}
}

func TestPinsOfFactsThatAreNotThere(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	for _, pin := range []string{"wwid", "serial"} {
		attributes := map[string]string{"device": disk.Path, pin: "x"}
		_, err := static.New(rig.DevicePatterns(), hardware(t, disk, nil)).Open(rig.Context(t), attributes)
		wantError(t, err, volume.ErrMismatch, "volumeAttributes."+pin+` is "x", but `+disk.Path)
		if err != nil && !strings.Contains(err.Error(), "states none") {
			t.Errorf("%q does not say that there is none", err)
		}
		// What is stated and cannot be read proves nothing, neither way.
		_, err = static.New(rig.DevicePatterns(), hardware(t, disk, map[string]string{pin + "/x": ""})).Open(rig.Context(t), attributes)
		wantError(t, err, unix.EISDIR, "verify volumeAttributes."+pin)
		if errors.Is(err, volume.ErrMismatch) {
			t.Errorf("%q calls it a mismatch", err)
		}
	}
}

// A pin that holds for another disk, too, does not say which is meant.
func TestPinsThatHoldForTwoDisks(t *testing.T) {
	disk := rig.NewDisk(t, rig.MiB)
	root := t.TempDir()
	dir := filepath.Join(root, "dev/block", disk.Number().String())
	for path, content := range map[string]string{
		dir + "/dev": disk.Number().String(), dir + "/wwid": "first", dir + "/serial": "both",
		root + "/block/other/dev": "259:5", root + "/block/other/wwid": "second", root + "/block/other/serial": "both",
		root + "/block/other/uevent": "DEVNAME=other", root + "/block/other/size": "8",
		root + "/block/other/queue/logical_block_size": "512", root + "/block/other/queue/rotational": "0",
		root + "/block/other/ro": "0", root + "/block/other/removable": "0",
	} {
		rig.Must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		rig.Must(t, os.WriteFile(path, []byte(content), 0o600))
	}
	rig.Must(t, os.Symlink("../../block/other", root+"/dev/block/259:5"))
	pool := static.New(rig.DevicePatterns(), blockdev.NewSysfs(root))
	for name, test := range map[string]struct {
		pins map[string]string
		want error
		says string
	}{
		"wwid":   {map[string]string{"wwid": "first"}, nil, ""},
		"serial": {map[string]string{"serial": "both"}, volume.ErrMismatch, "stated by " + disk.Path + " (" + disk.Number().String() + ") and by /dev/other"},
		"both":   {map[string]string{"wwid": "first", "serial": "both"}, nil, ""},
		"size":   {map[string]string{"size": "1Mi"}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			test.pins["device"] = disk.Path
			device, err := pool.Open(rig.Context(t), test.pins)
			if err == nil {
				device.Close()
			}
			wantError(t, err, test.want, test.says)
		})
	}
}

func TestDeviceThatHasGone(t *testing.T) {
	for name, remove := range map[string]func(*rig.Disk, testing.TB){"no medium": (*rig.Disk).Detach, "pulled": (*rig.Disk).Pull} {
		t.Run(name, func(t *testing.T) {
			disk, dir := rig.NewLoop(t, rig.MiB, 512), resolvedTempDir(t)
			rig.Must(t, os.Symlink(disk.Path, dir+"/disk"))
			pool := static.New([]string{dir + "/*"}, sysfs)
			device, err := pool.Open(rig.Context(t), map[string]string{"device": dir + "/disk"})
			rig.Must(t, err)
			device.Close()
			remove(disk, t)
			_, err = pool.Open(rig.Context(t), map[string]string{"device": dir + "/disk"})
			wantError(t, err, volume.ErrNotFound, dir+"/disk")
		})
	}
}

func FuzzParseSize(f *testing.F) {
	for _, text := range []string{"8Mi", "8388608", "1.5Gi", "-1", "0", "1m", "1e3", "1E", "16Ei", "9223372036854775808", "+8", "8 Mi", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		size, err := static.ParseSize(text)
		if (size == 0) == (err == nil) || int64(size) < 0 {
			t.Errorf("%q is %d bytes, %v", text, size, err)
		}
		if err != nil && !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
	})
}

func wantError(t *testing.T, err, want error, says string) {
	t.Helper()
	wantsError := want != nil || says != ""
	if (err != nil) != wantsError || want != nil && !errors.Is(err, want) || err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("got %v; want %v and the words %q", err, want, says)
	}
}

// hardware is a tree of devices in which the disk states the facts.
func hardware(t *testing.T, disk *rig.Disk, facts map[string]string) blockdev.Sysfs {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "dev/block", disk.Number().String())
	rig.Must(t, os.MkdirAll(dir, 0o700))
	rig.Must(t, os.Mkdir(filepath.Join(root, "block"), 0o700))
	for name, content := range facts {
		rig.Must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		rig.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	return blockdev.NewSysfs(root)
}

// resolvedTempDir is a temporary directory whose path has no links.
func resolvedTempDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	rig.Must(t, err)
	return dir
}
