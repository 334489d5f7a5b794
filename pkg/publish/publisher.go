package publish

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Publisher publishes devices on this node. Its methods may be called
// concurrently for different volumes and targets.
type Publisher struct {
	state  string
	sysfs  blockdev.Sysfs
	bootID string
	// owner stands for the state directory in the labels of loop devices: there may be
	// other plugins on the machine, with directories of their own.
	owner string
	// roots are the names of the kubelet directory, once it is known.
	roots roots
	// staging is held while a device is looked for among those of other volumes and
	// recorded.
	staging sync.Mutex
}

// New returns the publisher of this node. It keeps its records in the directory
// state, which it makes; the directory should be on a filesystem that does not
// outlive the boot, such as /run, since no record does.
func New(state string, sysfs blockdev.Sysfs) (*Publisher, error) {
	bootID, err := readBootID()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for records: %w", err)
	}
	info, err := linux.StatPath(state)
	if err != nil {
		return nil, fmt.Errorf("look at the directory for records: %w", err)
	}
	owner := shortHash(fmt.Sprint(info.ID))[:16]
	return &Publisher{state: state, sysfs: sysfs, bootID: bootID, owner: owner}, nil
}

// readBootID returns what is different at each boot (random(4)): no record of an
// earlier one counts.
func readBootID() (string, error) {
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("tell this boot from the last one: %w", err)
	}
	return strings.TrimSpace(string(bootID)), nil
}
