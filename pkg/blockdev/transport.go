package blockdev

import (
	"regexp"
	"slices"
	"strings"
)

// buses tells the transport of a disk by the directories above it in the kernel's tree
// of devices. The first that is found decides: the disk behind a USB port is also
// one of a SCSI host, and that of a virtual machine one below virtio.
var buses = []struct {
	transport string
	dir       *regexp.Regexp
}{
	// A controller of whatever fabric, or the subsystem of a disk with several
	// paths (drivers/nvme/host/core.c, multipath.c).
	{"nvme", regexp.MustCompile(`^nvme(-subsys)?[0-9]+$`)},
	{"mmc", regexp.MustCompile(`^mmc[0-9]+$`)},                 // drivers/mmc/core/host.c
	{"usb", regexp.MustCompile(`^usb[0-9]+$`)},                 // drivers/usb/core/hcd.c
	{"sas", regexp.MustCompile(`^end_device-[0-9]+:[0-9:]+$`)}, // drivers/scsi/scsi_transport_sas.c
	{"fc", regexp.MustCompile(`^rport-[0-9]+:[0-9]+-[0-9]+$`)}, // drivers/scsi/scsi_transport_fc.c
	{"iscsi", regexp.MustCompile(`^session[0-9]+$`)},           // drivers/scsi/scsi_transport_iscsi.c
	{"sata", regexp.MustCompile(`^ata[0-9]+$`)},                // drivers/ata/libata-transport.c
	// What is left: virtio-scsi, Hyper-V, VMware, hardware RAID (drivers/scsi/hosts.c).
	{"scsi", regexp.MustCompile(`^host[0-9]+$`)},
	{"virtio", regexp.MustCompile(`^virtio[0-9]+$`)}, // drivers/virtio/virtio.c
	{"xen", regexp.MustCompile(`^vbd-[0-9]+$`)},      // drivers/xen/xenbus/xenbus_probe_frontend.c
}

// Transports returns the ways in which disks are attached, as Disk.Transport has
// them. Any other word there is the name of a driver.
func Transports() []string {
	var names []string
	for _, bus := range buses {
		names = append(names, bus.transport)
	}
	return names
}

// transport returns the transport of the disk whose directory, without links, is
// given, or the letters that its name begins with.
func transport(dir string) string {
	elements := strings.Split(dir, "/")
	name := elements[len(elements)-1]
	driver := name
	if end := strings.IndexAny(name, "-0123456789"); end > 0 {
		driver = name[:end]
	}
	if driver == "sr" {
		return driver // Compact disks are attached as disks are, and are none (drivers/scsi/sr.c).
	}
	for _, bus := range buses {
		if slices.ContainsFunc(elements, bus.dir.MatchString) {
			return bus.transport
		}
	}
	return driver
}
