package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// AutoactivationGuide is the page that says how to keep a host from activating what
// is written in a volume.
const AutoactivationGuide = "docs/guides/autoactivation.md"

// Holder is a block device that is made of another one, as the kernel tells
// (Documentation/ABI/testing/sysfs-block-dm).
type Holder struct {
	// Name is the kernel's, such as dm-0 or md127.
	Name string
	// Mapping and UUID are those of a mapping of device-mapper, which whoever made it has
	// chosen; empty where it is none.
	Mapping, UUID string
	// IsArray says that it is an array of MD.
	IsArray bool
}

// What made a mapping begins its UUID: _build_dm_uuid in lib/activate/dev_manager.c of
// lvm2, dm_prepare_uuid in cryptsetup's lib/libdevmapper.c, multipath-tools'
// libmultipath/devmapper.h, kpartx/devmapper.c.
var makers = []struct{ prefix, name string }{
	{"LVM-", "LVM"}, {"CRYPT-", "dm-crypt"}, {"mpath-", "multipath"}, {"part", "kpartx"},
}

func (h Holder) String() string {
	switch {
	case h.IsArray:
		return h.Name + " (MD)"
	case h.Mapping == "":
		return h.Name
	}
	for _, maker := range makers {
		if strings.HasPrefix(h.UUID, maker.prefix) {
			return fmt.Sprintf("%s (%s: %s)", h.Name, maker.name, h.Mapping)
		}
	}
	return fmt.Sprintf("%s (%s)", h.Name, h.Mapping)
}

// end is the command that ends it; empty where there is none that is known.
//
// A mapping is ended by its name, which the kernel has only once, and not by vgchange:
// whoever writes a volume group gives it any name, such as that of a group of the host.
func (h Holder) end() string {
	switch {
	case h.IsArray:
		return "mdadm --stop /dev/" + h.Name
	case strings.HasPrefix(h.UUID, "mpath-"):
		return "multipath -f " + h.Mapping // The mapping alone, multipathd would make again.
	case h.Mapping != "":
		return "dmsetup remove " + h.Mapping
	}
	return ""
}

// HoldersAbove returns what is made of a device, and of that in turn: what has to be
// ended first comes first.
func (s Sysfs) HoldersAbove(number linux.DeviceNumber) []Holder {
	return holdersAbove(s.device(number), nil, 0)
}

// maxHolders bounds what is listed, and maxHolderDepth how far up: who writes a volume
// group decides how many logical volumes it has.
const (
	maxHolders     = 8
	maxHolderDepth = 8
)

func holdersAbove(dir string, found []Holder, depth int) []Holder {
	entries, err := os.ReadDir(dir + "/holders")
	if err != nil || depth > maxHolderDepth {
		return found
	}
	for _, entry := range entries {
		above := dir + "/holders/" + entry.Name() // Not to be cleaned, see disk.
		holder := readHolder(above)
		if slices.Contains(found, holder) {
			continue
		}
		found = holdersAbove(above, found, depth+1)
		if !slices.Contains(found, holder) {
			found = append(found, holder)
		}
	}
	return found
}

func readHolder(dir string) Holder {
	holder := Holder{Name: filepath.Base(dir)}
	holder.Mapping, _ = readText(dir, "dm/name") // Of a mapping alone.
	holder.UUID, _ = readText(dir, "dm/uuid")
	_, err := os.Stat(dir + "/md")
	holder.IsArray = err == nil
	return holder
}

// DescribeHolders says what they are, and RemedyForHolders what to do about them.
func DescribeHolders(holders []Holder) string {
	var names []string
	for _, holder := range holders {
		names = append(names, holder.String())
	}
	return strings.Join(listed(names), ", ")
}

// RemedyForHolders says how they are ended, and how the host is kept from making them
// again.
func RemedyForHolders(holders []Holder) string {
	var commands []string
	for _, holder := range holders {
		if command := holder.end(); command != "" {
			commands = append(commands, command)
		}
	}
	const why = "if the host made it of what a pod wrote into a volume, keep it from that: " + AutoactivationGuide
	if len(commands) == 0 {
		return "remove the device from there; " + why
	}
	return "if nobody needs it: " + strings.Join(listed(commands), " && ") + "; " + why
}

// listed cuts a list off.
func listed(texts []string) []string {
	if more := len(texts) - maxHolders; more > 0 {
		return append(slices.Clone(texts[:maxHolders]), fmt.Sprintf("%d more (see lsblk)", more))
	}
	return texts
}
