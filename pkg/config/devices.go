package config

import "strings"

// hardware are the links that udev names after what the hardware states of itself
// (60-persistent-storage.rules of systemd): who may write to a disk cannot make one.
// Those of the cloud are set by its hypervisor.
var hardware = []Pattern{
	"/dev/disk/by-id/ata-*", "/dev/disk/by-id/google-*", "/dev/disk/by-id/mmc-*", "/dev/disk/by-id/nvme-*",
	"/dev/disk/by-id/scsi-*", "/dev/disk/by-id/usb-*", "/dev/disk/by-id/virtio-*", "/dev/disk/by-id/wwn-*",
}

// contentLinks begin the links that udev names after what is written on a disk.
var contentLinks = []string{
	"/dev/disk/by-id/dm-", "/dev/disk/by-id/lvm-pv-uuid-", "/dev/disk/by-id/md-",
	"/dev/disk/by-label/", "/dev/disk/by-partlabel/", "/dev/disk/by-partuuid/", "/dev/disk/by-uuid/",
	"/dev/mapper/", "/dev/md/",
}

// multipathLinks begins the links that are made of what the hardware states.
const multipathLinks = "/dev/disk/by-id/dm-uuid-mpath-"

// Forgeable returns the patterns that may match links which the content of a disk
// decides: whoever writes to a disk can have one lead to it. They are allowed, since an
// administrator may mean them, such as the UUID of one logical volume.
func (d Devices) Forgeable() []Pattern {
	var found []Pattern
	for _, pattern := range d.Allow {
		for _, link := range contentLinks {
			if pattern.mayBegin(link) && !strings.HasPrefix(string(pattern), multipathLinks) {
				found = append(found, pattern)
				break
			}
		}
	}
	return found
}

// mayBegin reports whether something that the pattern matches may begin with a text. It
// says so where it is not sure.
func (p Pattern) mayBegin(text string) bool {
	// A wildcard stands for no slash, so a pattern matches in a directory of its depth.
	if strings.Count(string(p), "/") != strings.Count(text, "/") {
		return false
	}
	plain := string(p)
	if wildcard := strings.IndexAny(plain, `*?[\`); wildcard >= 0 {
		plain = plain[:wildcard]
	}
	return strings.HasPrefix(plain, text) || strings.HasPrefix(text, plain)
}
