package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/health"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// hungPool is a fake of a pool one of whose disks does not answer, which cannot be had
// with loop devices. Methods that are not expected panic.
type hungPool struct {
	Pool
	release chan struct{}
}

func (p *hungPool) Health(context.Context) ([]volume.Condition, []linux.DeviceNumber, error) {
	<-p.release
	return []volume.Condition{{Severity: volume.Degraded, Reason: volume.WipeFailing, Message: "pool hung: no"}}, nil, nil
}

func (p *hungPool) VolumeHealth(_ context.Context, name string) ([]volume.Condition, []linux.DeviceNumber, error) {
	<-p.release
	if name == "broken" {
		return nil, nil, errors.New("cannot tell")
	}
	return nil, nil, fmt.Errorf("%w: %s", volume.ErrNotFound, name)
}

func (p *hungPool) List(context.Context) ([]volume.Info, error) {
	<-p.release
	return nil, nil
}

func (p *hungPool) Missing() []string { return []string{"on-a-disk-that-has-gone"} }

func newReports(t *testing.T, pool Pool, patience time.Duration) *reports {
	t.Helper()
	sysfs := blockdev.NewSysfs("/sys")
	publisher, err := publish.New(t.TempDir(), sysfs)
	must(t, err)
	r := &reports{
		volumes:     volumes{node: "node", pools: map[string]Pool{"hung": pool}},
		attachments: noAttachments{}, publisher: publisher, monitor: health.New(sysfs),
	}
	r.pools.Patience, r.names.Patience = patience, patience
	return r
}

func TestNobodyWaitsForAPoolThatHangs(t *testing.T) {
	pool := &hungPool{release: make(chan struct{})}
	r := newReports(t, pool, time.Millisecond)
	found, err := r.volume(t.Context(), "hung/some@node")
	if err != nil || len(found) != 1 || found[0].Reason != volume.NotAnswering || !strings.HasPrefix(found[0].Message, "volume hung/some@node has not answered") {
		t.Errorf("got %v, %v", found, err)
	}
	found, err = r.storage(t.Context())
	if err != nil || len(found) != 1 || found[0].Reason != volume.NotAnswering {
		t.Errorf("got %v, %v", found, err)
	}
	ids, err := r.provisioned(t.Context())
	if err != nil || len(ids) != 0 {
		t.Errorf("got %v, %v", ids, err)
	}
	close(pool.release)
	r.pools.Patience, r.names.Patience = time.Minute, time.Minute
	if _, err := r.volume(t.Context(), "hung/some@node"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	found, err = r.volume(t.Context(), "hung/broken@node")
	if err != nil || len(found) != 1 || found[0].Reason != volume.CheckFailed || !strings.Contains(found[0].Message, "volume hung/broken@node is: cannot tell") {
		t.Errorf("got %v, %v", found, err)
	}
	n := &node{reports: r}
	response, err := n.NodeGetStorageHealth(t.Context(), nil)
	if err != nil || len(response.GetBackendHealth()) != 1 || response.GetBackendHealth()[0].GetStatus() != csi.StorageHealthErrorType_STORAGE_DEGRADED {
		t.Errorf("got %v, %v", response, err)
	}
	if ids, err := r.provisioned(t.Context()); err != nil || len(ids) != 1 || ids[0] != "hung/on-a-disk-that-has-gone@node" {
		t.Errorf("got %v, %v", ids, err)
	}
}

// A pool of another kind has no more to say than whether it has a volume.
func TestPoolWithoutReports(t *testing.T) {
	pool := struct{ Pool }{&hungPool{}}
	r := newReports(t, pool, time.Minute)
	if found, err := r.storage(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("got %v, %v", found, err)
	}
}

// Kubernetes drops an answer that is more than it takes.
func TestAnswersFitKubernetes(t *testing.T) {
	var conditions []volume.Condition
	for _, reason := range volume.Reasons() {
		conditions = append(conditions, volume.Condition{Severity: volume.Degraded, Reason: reason, Message: strings.Repeat("é", 600) + "\xff"})
	}
	conditions = append(conditions, volume.Condition{Severity: volume.DataLoss, Reason: volume.SizeShrank, Message: "short"})
	described := describeHealth("vol", volume.MergeConditions(conditions))
	if len(described.GetHealthStatuses()) != maxConditions {
		t.Errorf("%d conditions", len(described.GetHealthStatuses()))
	}
	for i, entry := range described.GetHealthStatuses() {
		if i == 0 && (entry.GetStatus() != csi.VolumeHealthErrorType_DATA_LOSS || entry.GetMessage() != "short") {
			t.Errorf("the worst is not the first: %v", entry)
		}
		if len(entry.GetMessage()) > maxMessage || !utf8.ValidString(entry.GetMessage()) {
			t.Errorf("a message of %d bytes: %q", len(entry.GetMessage()), entry.GetMessage())
		}
		if len(entry.GetReason()) > 256 {
			t.Errorf("%s is too long", entry.GetReason())
		}
	}
}
