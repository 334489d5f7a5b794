package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// pool is a fake: no disk of this machine can be made to fail a wipe at will, nor to
// hang. cmd/rawblockctl has the real pools, and a specimen of all that can be planted.
type pool struct {
	status disk.Status
	// hangs says that List does not answer before it is closed.
	hangs chan struct{}
	err   error
}

func (p *pool) Status() disk.Status { return p.status }

func (p *pool) List(context.Context) ([]volume.Info, error) {
	if p.hangs != nil {
		<-p.hangs
	}
	return nil, p.err
}

func (p *pool) Capacity(context.Context, map[string]string) (volume.Capacity, error) {
	return volume.Capacity{}, nil
}

// newDoctor returns the doctor of a node with one pool, in directories of its own.
func newDoctor(t *testing.T, p *pool) *Doctor {
	t.Helper()
	rig.RequireRoot(t)
	kubeletDir := t.TempDir()
	rig.Must(t, os.Mkdir(filepath.Join(kubeletDir, "pods"), 0o755))
	inspector := inspect.New(inspect.Options{
		Node: "node", Driver: "driver", StateDir: t.TempDir(), KubeletDir: kubeletDir, Sysfs: blockdev.NewSysfs("/sys"),
		Pools: []inspect.Source{{Name: "pool", Kind: "disk", Volumes: p}},
	})
	return New(Options{Inspector: inspector, Inflight: &inflight.Names{}})
}

func only(t *testing.T, found []Finding, err error, check Check) Finding {
	t.Helper()
	rig.Must(t, err)
	if len(found) != 1 || found[0].Check != check {
		t.Fatalf("found %+v, want %s alone", found, check)
	}
	return found[0]
}

// A wipe that fails is told with its cause, and nothing is done about it.
func TestFailedWipe(t *testing.T) {
	p := &pool{status: disk.Status{Disks: []disk.Member{{
		Path: "/dev/sdx", Wiping: []disk.Wiping{{Start: 1 << 20, Size: 8, Left: 8}, {Start: 2 << 20, Size: 9, Left: 9, Err: errors.New("input/output error")}},
	}}}}
	d := newDoctor(t, p)
	found, err := d.Findings(t.Context())
	finding := only(t, found, err, FailedWipe)
	if finding.Subject != "/dev/sdx at 2097152" || !strings.Contains(finding.Message, "input/output error") || finding.Fix != "" {
		t.Errorf("found %+v", finding)
	}
	if _, err := d.Fix(t.Context(), finding.ID); !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), finding.Remedy) {
		t.Errorf("it is mended with %v", err)
	}
	if _, err := d.Fix(t.Context(), "FailedWipe-none"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("what is not there is mended with %v", err)
	}
}

// What cannot be looked at is not taken for well, and hides nothing else.
func TestUnseen(t *testing.T) {
	p := &pool{err: errors.New("input/output error"), status: disk.Status{Disks: []disk.Member{{Path: "/dev/sdx", Wiping: []disk.Wiping{{Err: errors.New("it fails")}}}}}}
	d := newDoctor(t, p)
	rig.Must(t, os.Remove(filepath.Join(d.Inspector.KubeletDir, "pods")))
	found, err := d.Findings(t.Context())
	rig.Must(t, err)
	var texts []string
	for _, finding := range found {
		texts = append(texts, string(finding.Check)+": "+finding.Message)
	}
	all := strings.Join(texts, "\n")
	for _, want := range []string{"FailedWipe: ", "Unseen: this could not be looked at: pool pool: input/output error", "there are neither pods nor block volumes in it; set --kubelet-dir to kubelet's --root-dir"} {
		if len(found) != 3 || !strings.Contains(all, want) {
			t.Errorf("found without %q:\n%s", want, all)
		}
	}
}

// Each check has a word of its own.
func TestChecks(t *testing.T) {
	seen := map[Check]bool{}
	for _, check := range Checks() {
		if seen[check] {
			t.Errorf("%s is there twice", check)
		}
		seen[check] = true
	}
	if idOf(StaleLoop, "a") == idOf(StaleLoop, "b") || idOf(StaleLoop, "a") == idOf(StaleView, "a") {
		t.Error("two findings have one ID")
	}
}
