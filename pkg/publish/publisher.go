package publish

import (
	"fmt"
	"os"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
)

// Publisher publishes devices on this node. Its methods may be called
// concurrently for different volumes.
type Publisher struct {
	sysfs  blockdev.Sysfs
	bootID string
}

// New returns the publisher of this node.
func New(sysfs blockdev.Sysfs) (*Publisher, error) {
	// Different at each boot (random(4)): no record of an earlier one counts.
	const bootIDFile = "/proc/sys/kernel/random/boot_id"
	bootID, err := os.ReadFile(bootIDFile)
	if err != nil {
		return nil, fmt.Errorf("tell this boot from the last one: %w", err)
	}
	return &Publisher{sysfs: sysfs, bootID: strings.TrimSpace(string(bootID))}, nil
}
