package e2e

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestVolumeForDisk(t *testing.T) {
	s := newScene(t)
	d := s.newDisk(s.nodes()[1])
	d.node.mustShell(s, "printf 'was here before' | dd of=%s conv=notrunc 2>&1", d.file)
	d.volume("data")
	pod := s.run(withClaim(podSpec("pod", idle...), "data"))
	if pod.node() != d.node.name {
		t.Errorf("the pod runs on %s", pod.node())
	}
	if got := pod.mustShell("head -c 15 %s", devicePath); got != "was here before" {
		t.Errorf("the pod reads %q", got)
	}
	sum := pod.fill(devicePath)
	pod.delete()
	if got := d.node.mustShell(s, "dd if=%s bs=1M count=4 2>/dev/null | sha256sum", d.loop); got != sum {
		t.Errorf("the disk has %s, and the pod wrote %s", got, sum)
	}
}

// The pod sees errors, and can be deleted; the next one waits for the disk.
//
// A disk that is pulled out under a pod is played by one that fails: kubelet keeps
// the devices of pods open, and a loop device that is open does not go.
func TestDiskIsGone(t *testing.T) {
	s := newScene(t)
	d := s.newDisk(s.nodes()[0])
	d.volume("data")
	first := s.run(withClaim(podSpec("first", idle...), "data"))
	sum := first.fill(devicePath)
	d.fail()
	if printed, err := first.shell("dd if=%s bs=1M skip=32 count=1 2>&1 >/dev/null", devicePath); err == nil {
		t.Errorf("the pod reads from a disk that has failed: %s", printed)
	}
	first.delete()
	d.pull()

	second := s.start(withClaim(podSpec("second", idle...), "data"))
	s.until("an event names the disk that is missing", func(ctx context.Context) (bool, error) {
		events, err := s.kube.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=second"})
		if err != nil {
			return false, err
		}
		for _, event := range events.Items {
			if strings.Contains(event.Message, d.link) {
				return true, nil
			}
		}
		return false, nil
	})
	d.repair()
	d.plug()
	second.untilReady()
	second.wantSum(devicePath, sum)
}
