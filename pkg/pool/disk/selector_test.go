package disk_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

const gib = 1 << 30

// machine is a machine whose disks this one need not have: directories of sysfs by
// their paths below /sys/devices, with their files.
var machine = map[string]map[string]string{
	"pci0/ata1/host0/target0:0:0/0:0:0:0/block/sda": {
		"dev": "8:0", "size": sectors(4096 * gib), "queue/rotational": "1",
		"device/model": "ST4000NM0035", "device/wwid": "naa.5000c5001", "device/vpd_pg80": "\x00\x80\x00\x06ZC1234",
		"sda1/partition": "1", "sda1/dev": "8:1", "sda1/uevent": "DEVNAME=sda1",
	},
	"pci0/ata2/host1/target1:0:0/1:0:0:0/block/sdb": {"dev": "8:16", "size": sectors(500 * gib), "device/model": "ST500", "ro": "1"},
	"pci0/ata3/host2/target2:0:0/2:0:0:0/block/sdc": {"dev": "8:32", "size": "not a number"},
	"pci0/usb1/host3/target3:0:0/3:0:0:0/block/sdd": {"dev": "8:48", "size": "0", "removable": "1"},
	"pci0/nvme/nvme0/nvme0n1":                       {"dev": "259:0", "size": sectors(100 * gib), "wwid": "eui.0025", "device/model": "SAMSUNG MZ7", "device/serial": "S4A1"},
	"pci0/nvme/nvme1/nvme1n1":                       {"dev": "259:1", "size": sectors(200 * gib), "wwid": "eui.0026", "device/model": "SAMSUNG/MZ8", "device/serial": "S4B2"},
	"pci0/nvme/nvme2/nvme2n1":                       {"dev": "259:2", "size": sectors(300 * gib)}, // States nothing.
	"pci0/virtio0/block/vda":                        {"dev": "254:0", "size": sectors(10 * gib), "queue/rotational": "1", "serial": "mydevice1"},
	"pci0/ata4/host4/target4:0:0/4:0:0:0/block/sr0": {"dev": "11:0", "size": sectors(gib), "ro": "1"},
	"virtual/block/loop0":                           {"dev": "7:0", "size": sectors(gib)},
	"virtual/block/loop1":                           {"dev": "7:1", "size": "0"},
	"virtual/block/ram0":                            {"dev": "1:0", "size": sectors(gib)},
	"virtual/block/zram0":                           {"dev": "253:0", "size": sectors(gib)},
	"virtual/block/dm-0":                            {"dev": "252:0", "size": sectors(gib)},
	"virtual/block/md0":                             {"dev": "9:0", "size": sectors(gib)},
	"virtual/block/nbd0":                            {"dev": "43:0", "size": sectors(gib)},
	"rbd/0/block/rbd0":                              {"dev": "251:0", "size": sectors(gib)},
}

func sectors(bytes uint64) string { return fmt.Sprint(bytes / 512) }

// writeMachine makes the sysfs of the machine, and a /dev with the nodes of its
// disks and links to them.
func writeMachine(t *testing.T) (tree blockdev.Sysfs, dev string) {
	t.Helper()
	rig.RequireRoot(t)
	root, dev := t.TempDir(), t.TempDir()
	rig.Must(t, os.Mkdir(dev+"/by-id", 0o700))
	for _, dir := range []string{"/block", "/dev/block"} {
		rig.Must(t, os.MkdirAll(root+dir, 0o700))
	}
	for dir, facts := range machine {
		name, place := filepath.Base(dir), root+"/devices/"+dir
		files := map[string]string{
			"diskseq": "1", "ro": "0", "removable": "0", "queue/logical_block_size": "512", "queue/rotational": "0", "uevent": "DEVNAME=" + name,
		}
		for file, content := range facts {
			files[file] = content
		}
		for file, content := range files {
			path := filepath.Join(place, file)
			rig.Must(t, os.MkdirAll(filepath.Dir(path), 0o700))
			rig.Must(t, os.WriteFile(path, []byte(content+"\n"), 0o600))
			if filepath.Base(file) == "dev" {
				rig.Must(t, os.Symlink(filepath.Dir(path), root+"/dev/block/"+content))
				node(t, dev+"/"+filepath.Base(filepath.Dir(path)), content)
			}
		}
		rig.Must(t, os.Symlink(place, root+"/block/"+name))
	}
	for link, target := range map[string]string{
		"nvme-A": "../nvme0n1", "nvme-B": "../nvme1n1", "ata-1": "../sda", "ata-1-part1": "../sda1", "loop-0": "../loop0",
		"dangling": "../nothing", "circle": "circle", "file": "../file", "twice": "nvme-A",
	} {
		rig.Must(t, os.Symlink(target, dev+"/by-id/"+link))
	}
	rig.Must(t, os.WriteFile(dev+"/file", nil, 0o600))
	return blockdev.NewSysfs(root), dev
}

func node(t *testing.T, path, number string) {
	t.Helper()
	var major, minor uint32
	_, err := fmt.Sscanf(number, "%d:%d", &major, &minor)
	rig.Must(t, err)
	rig.Must(t, unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))))
}

func TestCandidates(t *testing.T) {
	tree, dev := writeMachine(t)
	paths := func(patterns ...string) disk.Selector {
		var s disk.Selector
		for _, pattern := range patterns {
			s.Paths = append(s.Paths, dev+"/"+pattern)
		}
		return s
	}
	with := func(s disk.Selector, change func(*disk.Selector)) disk.Selector { change(&s); return s }
	yes, no := true, false
	for name, test := range map[string]struct {
		match   disk.Selector
		exclude []disk.Selector
		want    string
	}{
		"transport":                  {disk.Selector{Transport: "nvme"}, nil, "nvme0n1 nvme1n1 nvme2n1"},
		"transport and size":         {disk.Selector{Transport: "nvme", MinSize: 200 * gib}, nil, "nvme1n1 nvme2n1"},
		"sizes are included":         {disk.Selector{MinSize: 100 * gib, MaxSize: 200 * gib}, nil, "nvme0n1 nvme1n1"},
		"one byte too small":         {disk.Selector{MinSize: 100*gib + 1, MaxSize: 200*gib - 1}, nil, ""},
		"rotational":                 {disk.Selector{Rotational: &yes}, nil, "sda vda"},
		"not rotational":             {disk.Selector{Rotational: &no}, nil, "nvme0n1 nvme1n1 nvme2n1"},
		"model":                      {disk.Selector{Model: "SAMSUNG*"}, nil, "nvme0n1"}, // No * goes over a slash.
		"model with a slash":         {disk.Selector{Model: "SAMSUNG/*"}, nil, "nvme1n1"},
		"all states nothing of it":   {disk.Selector{Model: "*"}, nil, "nvme0n1 sda"},
		"serial":                     {disk.Selector{Serial: "S4*"}, nil, "nvme0n1 nvme1n1"},
		"serial of a page":           {disk.Selector{Serial: "ZC1234"}, nil, "sda"},
		"serial is all of it":        {disk.Selector{Serial: "ZC123"}, nil, ""},
		"WWID":                       {disk.Selector{WWID: "eui.*"}, nil, "nvme0n1 nvme1n1"},
		"facts that contradict":      {disk.Selector{WWID: "eui.*", Serial: "ZC1234"}, nil, ""},
		"node":                       {paths("nvme0n1"), nil, "nvme0n1"},
		"link":                       {paths("by-id/nvme-A"), nil, "nvme0n1"},
		"link to a link":             {paths("by-id/twice"), nil, "nvme0n1"},
		"links":                      {paths("by-id/nvme-*"), nil, "nvme0n1 nvme1n1"},
		"all links":                  {paths("by-id/*"), nil, "nvme0n1 nvme1n1 sda"},
		"several paths":              {paths("by-id/ata-1", "nvme?n1"), nil, "nvme0n1 nvme1n1 nvme2n1 sda"},
		"a partition is no disk":     {paths("by-id/ata-1-part1", "sda1"), nil, ""},
		"leads nowhere":              {paths("by-id/dangling", "by-id/circle", "file", "file/x", "by-id/file", "none*"), nil, ""},
		"path and fact":              {with(paths("by-id/*"), func(s *disk.Selector) { s.Transport = "nvme" }), nil, "nvme0n1 nvme1n1"},
		"path and another fact":      {with(paths("by-id/nvme-A"), func(s *disk.Selector) { s.Transport = "sata" }), nil, ""},
		"loop device by path":        {paths("loop0"), nil, "loop0"},
		"loop device by link":        {paths("by-id/loop-0"), nil, "loop0"},
		"loop device by wildcard":    {paths("loop*"), nil, ""},
		"loop device by both":        {paths("loop*", "loop0"), nil, "loop0"},
		"loop device by its driver":  {disk.Selector{Transport: "loop"}, nil, ""},
		"rbd by path":                {paths("rbd0"), nil, "rbd0"},
		"all by wildcard":            {paths("*"), nil, "nvme0n1 nvme1n1 nvme2n1 sda vda"},
		"never":                      {paths("ram0", "zram0", "dm-0", "md0", "nbd0", "sr0", "sdb", "sdd", "loop1"), nil, ""},
		"unreadable":                 {paths("sdc"), nil, ""},
		"exclude by fact":            {disk.Selector{Transport: "nvme"}, []disk.Selector{{Serial: "S4A1"}}, "nvme1n1 nvme2n1"},
		"exclude what is not stated": {disk.Selector{Transport: "nvme"}, []disk.Selector{{Model: "*", Serial: "*"}}, "nvme1n1 nvme2n1"},
		"exclude by all facts":       {disk.Selector{Transport: "nvme"}, []disk.Selector{{Serial: "S4*", MaxSize: 100 * gib}}, "nvme1n1 nvme2n1"},
		"exclude several":            {disk.Selector{Transport: "nvme"}, []disk.Selector{{Serial: "S4A1"}, {MinSize: 300 * gib}}, "nvme1n1"},
		"exclude by path":            {disk.Selector{Transport: "nvme"}, []disk.Selector{paths("by-id/nvme-A")}, "nvme1n1 nvme2n1"},
		"exclude by wildcard":        {paths("loop0", "nvme0n1"), []disk.Selector{paths("loop*")}, "nvme0n1"},
		"exclude by driver":          {paths("loop0", "nvme0n1"), []disk.Selector{{Transport: "loop"}}, "nvme0n1"},
		"exclude by its partition":   {disk.Selector{Rotational: &yes}, []disk.Selector{paths("by-id/ata-1-part1")}, "vda"},
		"exclude the same":           {disk.Selector{Transport: "nvme"}, []disk.Selector{{Transport: "nvme"}}, ""},
		"exclude what is not there":  {disk.Selector{Transport: "nvme"}, []disk.Selector{paths("none")}, "nvme0n1 nvme1n1 nvme2n1"},
		"exclude other path's facts": {disk.Selector{Transport: "nvme"}, []disk.Selector{with(paths("by-id/nvme-A"), func(s *disk.Selector) { s.Transport = "sata" })}, "nvme0n1 nvme1n1 nvme2n1"},
	} {
		t.Run(name, func(t *testing.T) {
			found, _, err := disk.Candidates(tree, test.match, test.exclude...)
			rig.Must(t, err)
			if diff := cmp.Diff(test.want, strings.Join(found, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Each disk is a candidate or listed with the reason; devices that are no hardware
// only where they are named.
func TestRefusals(t *testing.T) {
	tree, dev := writeMachine(t)
	yes := true
	everything := []string{dev + "/*"}
	for name := range machine {
		everything = append(everything, dev+"/"+filepath.Base(name))
	}
	for name, test := range map[string]struct {
		match   disk.Selector
		exclude []disk.Selector
		want    map[string]string
	}{
		"by facts": {disk.Selector{Transport: "sata", Rotational: &yes, MaxSize: gib}, nil, map[string]string{
			"sda":     "unmatched: it has 4398046511104 bytes, more than 1073741824",
			"sdb":     "unmatched: rotational is false",
			"sdc":     `unreadable: facts of disk sdc: size: strconv.ParseUint: parsing "not a number": invalid syntax`,
			"sdd":     "unmatched: its transport is usb, not sata",
			"vda":     "unmatched: its transport is virtio, not sata",
			"nvme0n1": "unmatched: its transport is nvme, not sata", "nvme1n1": "unmatched: its transport is nvme, not sata", "nvme2n1": "unmatched: its transport is nvme, not sata",
		}},
		"by what is stated": {disk.Selector{MinSize: 2 * gib, Serial: "S4A*"}, nil, map[string]string{
			"sda": `unmatched: its serial "ZC1234" is not like "S4A*"`, "vda": `unmatched: its serial "mydevice1" is not like "S4A*"`, "nvme1n1": `unmatched: its serial "S4B2" is not like "S4A*"`,
			"sdb": "unmatched: it states no serial", "nvme2n1": "unmatched: it states no serial",
			"sdc": `unreadable: facts of disk sdc: size: strconv.ParseUint: parsing "not a number": invalid syntax`,
			"sdd": "unmatched: it has 0 bytes, fewer than 2147483648",
		}},
		"all by path": {disk.Selector{Paths: everything}, []disk.Selector{{Transport: "nvme"}}, map[string]string{
			"sdb": "unfit: it is read-only", "sdd": "unfit: it has no medium", "loop1": "unfit: it has no medium",
			"sdc":     `unreadable: facts of disk sdc: size: strconv.ParseUint: parsing "not a number": invalid syntax`,
			"nvme0n1": "excluded: the configuration excludes it", "nvme1n1": "excluded: the configuration excludes it", "nvme2n1": "excluded: the configuration excludes it",
			"sr0": "unfit: devices of the driver sr are not used", "ram0": "unfit: devices of the driver ram are not used",
			"zram0": "unfit: devices of the driver zram are not used", "dm-0": "unfit: devices of the driver dm are not used",
			"md0": "unfit: devices of the driver md are not used", "nbd0": "unfit: devices of the driver nbd are not used",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			_, refused, err := disk.Candidates(tree, test.match, test.exclude...)
			rig.Must(t, err)
			if diff := cmp.Diff(test.want, refused); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMalformedSelectors(t *testing.T) {
	good := disk.Selector{Transport: "nvme"}
	for name, test := range map[string]struct {
		match   disk.Selector
		exclude []disk.Selector
		says    string
	}{
		"empty":             {disk.Selector{}, nil, "match: invalid argument: the selector is empty"},
		"empty exclusion":   {good, []disk.Selector{good, {}}, "exclude, entry 2: invalid argument: the selector is empty"},
		"no paths":          {disk.Selector{Paths: []string{}}, nil, "is empty"},
		"sizes":             {disk.Selector{MinSize: 2, MaxSize: 1}, nil, "at least 2 and at most 1"},
		"model":             {disk.Selector{Model: "[a"}, nil, `model "[a" is no pattern`},
		"model behind":      {disk.Selector{Model: "x[a"}, nil, `model "x[a" is no pattern`},
		"serial":            {disk.Selector{Serial: `a\`}, nil, `serial "a\\" is no pattern`},
		"WWID":              {disk.Selector{WWID: "[]a]"}, nil, `wwid "[]a]" is no pattern`},
		"path":              {disk.Selector{Paths: []string{"/dev/sda", "/dev/[a"}}, nil, `path "/dev/[a" is no pattern`},
		"relative path":     {disk.Selector{Paths: []string{"sda"}}, nil, `path "sda" is no pattern of absolute paths`},
		"empty path":        {disk.Selector{Paths: []string{""}}, nil, `path "" is no pattern of absolute paths`},
		"transport, a typo": {disk.Selector{Transport: "nmve"}, nil, `transport "nmve" is unknown`},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := disk.Candidates(sysfs, test.match, test.exclude...)
			if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v; want %v and the words %q", err, volume.ErrInvalid, test.says)
			}
		})
	}
}

// Real loop devices: what leads to them counts, not what they are called.
func TestLoopDevicesByPath(t *testing.T) {
	first, second := rig.NewLoop(t, rig.MiB, 512), rig.NewLoop(t, rig.MiB, 512)
	link := t.TempDir() + "/link"
	rig.Must(t, os.Symlink(first.Path, link))
	match := disk.Selector{Paths: []string{link}}
	want := func(disks ...*rig.Disk) {
		t.Helper()
		found, _, err := disk.Candidates(sysfs, match)
		rig.Must(t, err)
		var names []string
		for _, d := range disks {
			names = append(names, filepath.Base(d.Path))
		}
		if diff := cmp.Diff(names, found); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	want(first)
	rig.Must(t, os.Remove(link))
	want()
	rig.Must(t, os.Symlink(second.Path, link))
	want(second)
	second.Detach(t) // The medium goes, and with it the disk.
	want()
}
