package hotplug

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// The plugin of another node on this machine has granted the device since the grant was
// lost: two would undo each other's work, so it is said, and nothing is changed.
func TestGrantedByAnotherPlugin(t *testing.T) {
	eachVersion(t, func(t *testing.T, node *node, container *container) {
		disk := rig.NewDisk(t, rig.MiB)
		ctx := rig.Context(t)
		attached, err := node.Attach(ctx, container.request(disk, "/dev/xvdb"))
		rig.Must(t, err)
		container.takeGrant(t, disk)
		forget := container.grantAs(t, disk, "another")
		_, detachErr := node.Detach(ctx, attached.ID)
		for what, err := range map[string]error{"reconcile": node.Reconcile(ctx), "detach": detachErr} {
			if !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), `by the plugin of node "another"`) {
				t.Errorf("%s: %v", what, err)
			}
		}
		list, err := node.List(ctx)
		if err != nil || len(list) != 1 || !strings.Contains(list[0].Reason, `by the plugin of node "another"`) {
			t.Errorf("the attachments are %+v, %v", list, err)
		}
		_, err = container.read(t, "/dev/xvdb", 1)
		wantRefused(t, err)
		forget()
		rig.Must(t, node.Reconcile(ctx))
		wantNoAttachment(t, node)
	})
}

// grantAs writes down, where that is kept, that the plugin of a node granted the disk.
func (c *container) grantAs(t *testing.T, disk *rig.Disk, owner string) (forget func()) {
	t.Helper()
	name := "trusted.rawblock." + disk.Number().String()
	var undo []func()
	for _, path := range c.Cgroups() {
		dir, err := os.Open(path)
		rig.Must(t, err)
		t.Cleanup(func() { dir.Close() })
		if _, had, err := linux.Attribute(dir, name); err != nil || !had {
			continue // A cgroup of v1, for other things.
		}
		rig.Must(t, linux.SetAttribute(dir, name, "rw "+owner))
		undo = append(undo, func() { rig.Must(t, linux.RemoveAttribute(dir, name)) })
	}
	if len(undo) == 0 {
		t.Error("nothing was granted by anybody")
	}
	return func() {
		for _, one := range undo {
			one()
		}
	}
}
