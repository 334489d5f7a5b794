// Package doctor looks at what needs device-mapper, inside of a guest machine: a table
// that fails all I/O under a volume, and the way of a volume through a mapping.
package doctor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/doctor"
	"github.com/rawblock-csi/rawblock-csi/pkg/erase"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

func TestMain(m *testing.M) { machine.Main(m) }

const name = "rawblock-test-doctor"

func dmsetup(t *testing.T, args ...string) {
	t.Helper()
	if output, err := exec.CommandContext(t.Context(), "dmsetup", args...).CombinedOutput(); err != nil {
		t.Fatalf("dmsetup %v: %v\n%s", args, err, output)
	}
}

// A volume on a mapping is followed down to its disk, and the mapping is told once its
// table fails all I/O, and left as it is.
func TestErrorMapping(t *testing.T) {
	const sectors = 2048
	disk := machine.Add(t, machine.Disk{Size: 4 * rig.MiB})
	dmsetup(t, "create", name, "--table", fmt.Sprintf("0 %d linear %s 0", sectors, disk.Path))
	t.Cleanup(func() { exec.Command("dmsetup", "remove", "--retry", name).Run() })
	sysfs, state, kubeletDir := blockdev.NewSysfs("/sys"), rig.StateDir(t), t.TempDir()
	rig.Must(t, os.Mkdir(filepath.Join(kubeletDir, "pods"), 0o755))
	device, err := blockdev.Open("/dev/mapper/"+name, sysfs)
	rig.Must(t, err)
	publisher, err := publish.New(state, sysfs)
	rig.Must(t, err)
	rig.Must(t, publisher.Stage("mapped", device, volume.SingleNodeWriter))
	target := publish.Target{VolumeID: "mapped", Path: filepath.Join(kubeletDir, "target")}
	rig.Must(t, publisher.Admit(t.Context(), "mapped", device, publish.Publication{Target: target.Path, Mode: volume.SingleNodeWriter}))
	rig.Must(t, publisher.Publish(t.Context(), device, target, false))
	device.Close()
	defer func() { rig.Must(t, publisher.Unpublish(t.Context(), target)) }()

	inspector := inspect.New(inspect.Options{Node: "guest", Driver: "driver", StateDir: state, KubeletDir: kubeletDir, Sysfs: sysfs})
	node := doctor.New(doctor.Options{Inspector: inspector, Publisher: publisher, Inflight: &inflight.Names{}})
	if found, err := node.Findings(t.Context()); err != nil || len(found) != 0 {
		t.Errorf("while it is well: %+v, %v", found, err)
	}
	chain, err := inspector.Chain(t.Context(), "mapped")
	rig.Must(t, err)
	if medium := chain.Links[0]; medium.Kind != inspect.LinkMedium || medium.Name != disk.Path || medium.Next[0].Kind != inspect.LinkDevice || !strings.HasPrefix(medium.Next[0].Name, "/dev/dm-") {
		t.Errorf("the way is %+v", chain.Links)
	}
	if _, err := erase.Open(disk.Path, sysfs); err == nil || !strings.Contains(err.Error(), "held by dm-") {
		t.Errorf("the disk below the mapping is claimed to be wiped with %v", err)
	}

	// The mapping refers to the disk no longer.
	dmsetup(t, "suspend", "--noflush", name)
	dmsetup(t, "load", name, "--table", fmt.Sprintf("0 %d error", sectors))
	dmsetup(t, "resume", name)
	found, err := node.Findings(t.Context())
	if err != nil || len(found) != 1 || found[0].Check != doctor.ErrorMapping || !strings.HasPrefix(found[0].Subject, "/dev/dm-") || found[0].Fix != "" ||
		!strings.Contains(found[0].Message, "volume mapped") || !strings.Contains(found[0].Remedy, "delete the pods") {
		t.Errorf("found %+v, %v", found, err)
	}
	status, err := inspector.Status(t.Context())
	if err != nil || !slices.ContainsFunc(status.Conditions, func(c inspect.Condition) bool { return c.Of == "mapped" && c.Reason == volume.MappingFailed }) {
		t.Errorf("the conditions are %+v, %v", status.Conditions, err)
	}
}
