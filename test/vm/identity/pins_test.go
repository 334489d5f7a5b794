package identity

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// wantRefusedPins checks that a named volume is refused for its pins.
func wantRefusedPins(t *testing.T, attributes map[string]string, says string) {
	t.Helper()
	device, err := openStatic(t, attributes)
	if err == nil {
		device.Close()
	}
	t.Log(err)
	if !errors.Is(err, volume.ErrMismatch) || !strings.Contains(err.Error(), says) {
		t.Errorf("want %v with the words %q", volume.ErrMismatch, says)
	}
}

// wantOpened checks that a named volume is a disk.
func wantOpened(t *testing.T, attributes map[string]string, want *machine.Plugged) {
	t.Helper()
	device, err := openStatic(t, attributes)
	rig.Must(t, err)
	defer device.Close()
	if number := facts(t, want.Name).Number; device.Number() != number {
		t.Errorf("%v leads to %s, not %s", attributes, device.Number(), number)
	}
}

// Without udev there are no links: what is named by one is not found, and a pool that
// chooses by what disks state needs none.
func TestNoLinks(t *testing.T) {
	d := machine.Add(t, machine.Disk{Size: 64 * rig.MiB, Serial: "NOLINKS", WWN: 0x5000c500a1b20001})
	_, err := openStatic(t, attributes("/dev/disk/by-id/wwn-0x5000c500a1b20001"))
	if !errors.Is(err, volume.ErrNotFound) || !strings.Contains(err.Error(), "udev has made the link") {
		t.Errorf("got %v", err)
	}
	wantOpened(t, attributes(d.Path, "wwid", "naa.5000c500a1b20001", "serial", "NOLINKS"), d)
	pool := openPool(t, disk.Selector{WWID: "naa.5000c500a1b20001"})
	create(t, pool, "a", rig.MiB)
}

// A link that udev has not brought up to date leads to another disk. The link is
// followed, and what is there is compared with the pins by its descriptor.
func TestUdevStaleLink(t *testing.T) {
	ours := machine.Add(t, machine.Disk{Size: 64 * rig.MiB, Serial: "OURS", WWN: 0x5000c500a1b20002})
	others := machine.Add(t, machine.Disk{Size: 64 * rig.MiB, Serial: "OTHERS", WWN: 0x5000c500a1b20003})
	settle(t)
	const link, wwid = "/dev/disk/by-id/wwn-0x5000c500a1b20002", "naa.5000c500a1b20002"
	wantOpened(t, attributes(link, "wwid", wwid, "serial", "OURS"), ours)
	rig.Must(t, os.Remove(link))
	rig.Must(t, os.Symlink("../../"+others.Name, link))
	wantRefusedPins(t, attributes(link, "wwid", wwid), `wwid is "`+wwid+`", but `+others.Path)
	wantRefusedPins(t, attributes(link, "serial", "OURS"), `has "OTHERS"`)
	// Without pins, the administrator's word is that the path is the disk.
	wantOpened(t, attributes(link), others)
}

// Two disks of which each states what the other does. To a pool they are two disks,
// which it knows by what is on them. As volumes that an administrator names, nobody
// can tell which is meant: a pin is refused, whatever the path.
func TestUdevSameIdentity(t *testing.T) {
	for bus, wwid := range map[machine.Bus]string{
		machine.SCSI: "naa.5000c500a1b20004",
		// virtio states no WWID. Of two NVMe controllers that say that they are the same
		// one, Linux itself rejects the second (nvme_validate_cntlid in
		// drivers/nvme/host/core.c); their namespaces are in TestNamespaces.
		machine.Virtio: "",
	} {
		t.Run(string(bus), func(t *testing.T) {
			var disks []*machine.Plugged
			for range 2 {
				disks = append(disks, machine.Add(t, machine.Disk{Bus: bus, Size: 64 * rig.MiB, Serial: "TWICE-1", WWN: 0x5000c500a1b20004}))
			}
			settle(t)
			pins := []string{"serial", "TWICE-1"}
			if wwid != "" {
				pins = append(pins, "wwid", wwid)
			}
			for i, d := range disks {
				wantRefusedPins(t, attributes(d.Path, pins...), "and by "+disks[1-i].Path)
				wantOpened(t, attributes(d.Path), d)
			}
			pool := openPool(t, disk.Selector{Serial: "TWICE-*"})
			for _, name := range []string{"a", "b"} {
				create(t, pool, name, 50*rig.MiB) // More than half of a disk.
				rig.WriteAt(t, activate(t, pool, name).Node().Name(), name, 0)
			}
			if adopted := pool.Status().Disks; len(adopted) != 2 {
				t.Fatalf("disks of the pool: %+v", adopted)
			}
			disks[0].Unplug(t)
			disks[0].Plug(t)
			for _, name := range []string{"a", "b"} {
				if got := rig.ReadAt(t, activate(t, pool, name).Node().Name(), 1, 0); got != name {
					t.Errorf("volume %s has %q", name, got)
				}
			}
			disks[1].Unplug(t)
			wantOpened(t, attributes(disks[0].Path, pins...), disks[0]) // Alone it is known.
		})
	}
}

// Two paths to one disk, which nothing joins. A pool must not use it by both.
func TestUdevTwoPaths(t *testing.T) {
	described := machine.Disk{Size: 64 * rig.MiB, Medium: "two-paths", Serial: "PATHS", WWN: 0x5000c500a1b20005}
	first, second := machine.Add(t, described), machine.Add(t, described)
	settle(t)
	t.Run("both", func(t *testing.T) {
		pool := openPool(t, disk.Selector{Serial: "PATHS"})
		for _, d := range []*machine.Plugged{first, second} {
			wantRefused(t, pool, d.Name, "twin", "so they are paths to one disk; choose one of them by its path, and wipe neither")
			wantRefusedPins(t, attributes(d.Path, "serial", "PATHS"), "of two paths to one disk take one away")
		}
	})
	t.Run("one", func(t *testing.T) {
		pool := openPool(t, disk.Selector{Paths: []string{second.Path}})
		create(t, pool, "a", rig.MiB)
	})
}

// The same two paths, joined by multipath: each of them is held.
func TestUdevMultipath(t *testing.T) {
	run(t, "modprobe", "-a", "dm_multipath", "dm_service_time")
	const configuration = "/etc/multipath.conf"
	rig.Must(t, os.WriteFile(configuration, []byte("defaults {\n\tfind_multipaths no\n\tuser_friendly_names yes\n}\nblacklist {\n\tdevnode \"^vd\"\n}\n"), 0o644))
	t.Cleanup(func() { os.Remove(configuration) })
	described := machine.Disk{Size: 64 * rig.MiB, Medium: "multipath", Serial: "JOINED", WWN: 0x5000c500a1b20006}
	first, second := machine.Add(t, described), machine.Add(t, described)
	settle(t)
	t.Log(run(t, "multipath", "-v2"))
	undo(t, "multipath", "-F")
	plugin := rig.NewPlugin(t, nil)
	pool := openPool(t, disk.Selector{Serial: "JOINED"})
	for _, d := range []*machine.Plugged{first, second} {
		// A look is let through: it is the claim, and the holder, that tell.
		rig.ReadAt(t, d.Path, 512, 0)
		wantRefused(t, pool, d.Name, "busy", "(multipath: mpatha); if nobody needs it: multipath -f mpatha;")
		wantStaged(t, plugin.NewVolume(t, "vol", d.Path), "(multipath: mpatha); if nobody needs it: multipath -f mpatha;")
	}
}
