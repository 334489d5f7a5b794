//go:build crash

package hotplug

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// containers are those that differ in what the plugin does for them.
var containers = map[string]oci.Config{
	"v1":             {},
	"v2":             {CgroupV2: true},
	"user namespace": {UserNamespace: true},
}

// life is an attachment made and ended by the plugin as a process of its own.
type life struct {
	kubeletDir, stateDir string
	container            *container
	disk                 *rig.Disk
	before               []string
}

func newLife(t *testing.T, config oci.Config) *life {
	t.Helper()
	l := &life{rig.KubeletDir(t), rig.StateDir(t), startContainer(t, config), rig.NewDisk(t, rig.MiB), nil}
	l.before = rules(t, l.container)
	return l
}

// start starts the plugin, which has reconciled when it is returned.
func (l *life) start(t *testing.T, binary string, environment ...string) (*rig.Process, *admin.Client) {
	t.Helper()
	plugin := rig.Start(t, binary, l.kubeletDir, l.stateDir, environment...)
	client := admin.NewClient(filepath.Join(l.stateDir, "admin.sock"))
	for plugin.Runs() {
		if _, err := client.List(rig.Context(t)); !errors.Is(err, admin.ErrUnreachable) {
			break
		}
	}
	return plugin, client
}

// live attaches the disk and detaches it again, and returns the first error.
func (l *life) live(t *testing.T, client *admin.Client) error {
	t.Helper()
	ctx := rig.Context(t)
	attached, err := client.Attach(ctx, l.container.request(l.disk, "/dev/xvdb"))
	if err != nil {
		return err
	}
	_, err = client.Detach(ctx, attached.ID)
	return err
}

// wantFree checks that nobody has the disk any more.
func (l *life) wantFree(t *testing.T) {
	t.Helper()
	node := (&node{name: rig.NodeID, stateDir: l.stateDir}).restart(t)
	wantNoAttachment(t, node)
	rig.Must(t, node.stage(t, "another", l.disk))
	rig.Must(t, node.publisher.Unstage("another"))
}

// points returns the names of the steps of an undisturbed life.
func points(t *testing.T, binary string, config oci.Config) []string {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	l := newLife(t, config)
	plugin, client := l.start(t, binary, "RAWBLOCK_CRASH_TRACE="+trace)
	rig.Must(t, l.live(t, client))
	plugin.Kill()
	content, err := os.ReadFile(trace)
	rig.Must(t, err)
	found := strings.Split(strings.TrimSpace(string(content)), "\n")
	if len(found) < 8 {
		t.Fatalf("only the points %v were reached; is the hook built in?", found)
	}
	return found
}

// eachPoint runs a test for each step of a life in each kind of container.
func eachPoint(t *testing.T, test func(t *testing.T, binary string, config oci.Config, at int)) {
	rig.RequireRoot(t)
	binary := rig.Build(t, "crashpoints")
	for kind, config := range containers {
		for i, point := range points(t, binary, config) {
			t.Run(fmt.Sprintf("%s/%d %s", kind, i+1, point), func(t *testing.T) { test(t, binary, config, i+1) })
		}
	}
}

// The plugin is killed after each step. Started again, it has taken everything back,
// or it is attached whole: what was asked for can be done again.
func TestKilledBetweenAnyTwoSteps(t *testing.T) {
	eachPoint(t, func(t *testing.T, binary string, config oci.Config, at int) {
		l := newLife(t, config)
		plugin, client := l.start(t, binary, fmt.Sprintf("RAWBLOCK_CRASH_AT=%d", at))
		if err := l.live(t, client); err == nil {
			t.Fatalf("the plugin was not killed: %s", plugin.Kill())
		}
		plugin.Kill()
		_, client = l.start(t, binary)
		rig.Eventually(t, func() error { return settled(t, client) })
		list, err := client.List(rig.Context(t))
		rig.Must(t, err)
		if len(list) == 0 {
			l.container.wantNothing(t, "/dev/xvdb")
			wantRules(t, l.container, l.before)
		}
		// Attached or not, the same can be asked for.
		rig.Must(t, l.live(t, client))
		l.container.wantNothing(t, "/dev/xvdb")
		wantRules(t, l.container, l.before)
		l.wantFree(t)
	})
}

// The container is killed after each step. Nothing of it is left with the plugin.
func TestContainerKilledBetweenAnyTwoSteps(t *testing.T) {
	eachPoint(t, func(t *testing.T, binary string, config oci.Config, at int) {
		l := newLife(t, config)
		plugin, client := l.start(t, binary, fmt.Sprintf("RAWBLOCK_STOP_AT=%d", at))
		lived := make(chan error, 1)
		go func() { lived <- l.live(t, client) }()
		plugin.WaitStopped(t)
		rig.Must(t, l.container.Delete(rig.Context(t)))
		plugin.Continue(t)
		if err := <-lived; err != nil && !errors.Is(err, volume.ErrNotFound) {
			t.Errorf("it ended with %v; want that the container has ended, if anything", err)
		}
		rig.Eventually(t, func() error {
			list, err := client.List(rig.Context(t))
			if err == nil && len(list) > 0 {
				err = fmt.Errorf("there are %+v", list)
			}
			return err
		})
		plugin.Kill()
		l.wantFree(t)
	})
}

// settled returns an error while an attachment is in a state that does not last.
func settled(t *testing.T, client *admin.Client) error {
	list, err := client.List(rig.Context(t))
	if slices.ContainsFunc(list, func(a hotplug.Attachment) bool { return a.State != hotplug.Attached }) {
		err = fmt.Errorf("there are %+v", list)
	}
	return err
}
