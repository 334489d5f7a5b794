package hotplug

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// kinds are the containers that there are, as far as it matters to a device.
var kinds = map[string]struct {
	config oci.Config
	// refused says why nothing can be attached, "" where it can.
	refused string
}{
	"usual":                     {oci.Config{}, ""},
	"read-only root":            {oci.Config{ReadOnlyRootfs: true}, ""},
	"dev in the root":           {oci.Config{Dev: oci.DevInRootfs}, ""},
	"dev in the read-only root": {oci.Config{Dev: oci.DevInRootfs, ReadOnlyRootfs: true}, "is read-only in the container"},
	"read-only dev":             {oci.Config{Dev: oci.DevReadOnly}, "is read-only in the container"},
	"user namespace":            {oci.Config{UserNamespace: true}, ""},
	"read-only root and user":   {oci.Config{UserNamespace: true, ReadOnlyRootfs: true}, ""},
	"not root":                  {oci.Config{UID: 1000}, ""},
}

func TestMatrix(t *testing.T) {
	for name, kind := range kinds {
		for _, v2 := range []bool{false, true} {
			for _, readOnly := range []bool{false, true} {
				access := map[bool]string{false: "rw", true: "ro"}[readOnly]
				t.Run(fmt.Sprintf("%s/%s/%s", name, version(v2), access), func(t *testing.T) {
					config := kind.config
					config.CgroupV2 = v2
					testLife(t, config, readOnly, kind.refused)
				})
			}
		}
	}
}

// testLife attaches a disk to a container and detaches it again.
func testLife(t *testing.T, config oci.Config, readOnly bool, refused string) {
	node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, config)
	ctx := rig.Context(t)
	rig.WriteAt(t, disk.Path, "from the host", 0)
	// In a user namespace, no node can be made; in a read-only /dev neither, nor by
	// others than root.
	canMakeNodes := !config.UserNamespace && refused == "" && config.UID == 0
	var own string
	if canMakeNodes {
		own = container.ownNode(t, disk)
		_, err := container.read(t, own, 1)
		wantRefused(t, err)
	}
	before := rules(t, container)

	request := container.request(disk, "/dev/xvdb")
	request.ReadOnly = readOnly
	attached, err := node.Attach(ctx, request)
	if refused != "" {
		wantErrorOf(t, err, volume.ErrPrecondition, refused)
		wantRules(t, container, before)
		wantNoAttachment(t, node)
		return
	}
	rig.Must(t, err)
	if attached.State != hotplug.Attached || attached.Number != disk.Number().String() || attached.Size != rig.MiB {
		t.Errorf("attached: %+v", attached)
	}
	container.wantBasics(t)
	if got, err := container.read(t, "/dev/xvdb", 13); err != nil || got != "from the host" {
		t.Errorf("the container reads %q, %v", got, err)
	}
	err = container.write(t, "/dev/xvdb", "from inside")
	if readOnly {
		wantRefused(t, err)
	} else if got := rig.ReadAt(t, disk.Backing, 11, 0); err != nil || got != "from inside" {
		t.Errorf("on the disk there is %q, %v", got, err)
	}
	if canMakeNodes {
		if err := container.write(t, own, "by the own node"); (err != nil) != readOnly {
			t.Errorf("writing to a node of the container's own: %v", err)
		}
	}
	if again, err := node.Attach(ctx, request); err != nil || again.ID != attached.ID {
		t.Errorf("attached again: %+v, %v", again, err)
	}

	_, err = node.Detach(ctx, attached.ID)
	rig.Must(t, err)
	container.wantNothing(t, "/dev/xvdb")
	container.wantBasics(t)
	if canMakeNodes {
		_, err := container.read(t, own, 1)
		wantRefused(t, err)
	}
	wantRules(t, container, before)
	wantNoAttachment(t, node)
	if _, err := node.Detach(ctx, attached.ID); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("detached again: %v", err)
	}
}

func wantErrorOf(t testing.TB, err, want error, words string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v; want %v and the words %q", err, want, words)
	}
}

func wantNoAttachment(t testing.TB, node *node) {
	t.Helper()
	if list, err := node.List(rig.Context(t)); err != nil || len(list) > 0 {
		t.Errorf("there are attachments left: %+v, %v", list, err)
	}
}
