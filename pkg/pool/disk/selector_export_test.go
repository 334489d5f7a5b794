package disk

import "github.com/rawblock-csi/rawblock-csi/pkg/blockdev"

// Candidates returns the names of the disks that can be looked at, and why each of
// the others cannot, as "state: reason" by its name.
func Candidates(sysfs blockdev.Sysfs, match Selector, exclude ...Selector) (found []string, refused map[string]string, err error) {
	disks, refusals, err := candidates(sysfs, match, exclude)
	for _, disk := range disks {
		found = append(found, disk.Name)
	}
	refused = map[string]string{}
	for _, r := range refusals {
		refused[r.disk.Name] = string(r.state) + ": " + r.reason
	}
	return found, refused, err
}
