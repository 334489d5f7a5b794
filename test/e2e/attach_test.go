package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// attachedPath is where the target gets the device.
const attachedPath = "/dev/xvdb"

// target is a pod without any volume.
func (s *scene) target() *pod {
	s.Helper()
	spec := podSpec("target", idle...)
	spec.Labels = map[string]string{"app": "target"}
	return s.run(spec)
}

// attach makes an attachment pod for the target, as the example has it: it follows
// the target to its node, and its volume is made there.
func (s *scene) attach(claim string) *pod {
	s.Helper()
	spec := withClaim(podSpec("attach"), claim)
	spec.Annotations = map[string]string{"hotplug.rawblock.dev/target": "target/" + containerName + ":" + attachedPath}
	spec.Spec.Containers[0].Image = pauseImage
	spec.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			TopologyKey:   hostnameKey,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "target"}},
		}},
	}}
	return s.run(spec)
}

// untilState waits until the plugin of a node says of the test's only attachment
// that it is in a state.
func (s *scene) untilState(n node, want string) {
	s.Helper()
	s.until("an attachment is "+want, func(ctx context.Context) (bool, error) {
		plugin, err := n.plugin(ctx, s)
		if err != nil {
			return false, err
		}
		printed, err := s.execute(pluginSpace, plugin.Name, "plugin", "/rawblockctl", "list", "-o", "json")
		if err != nil {
			return false, err
		}
		var list []struct{ State string }
		if err := json.Unmarshal([]byte(printed), &list); err != nil {
			return false, fmt.Errorf("%w: %s", err, printed)
		}
		if len(list) != 1 || list[0].State != want {
			return false, fmt.Errorf("the attachments are %s", printed)
		}
		return true, nil
	})
}

func (p *pod) untilAttached() {
	p.Helper()
	p.until("the target has the device", func(context.Context) (bool, error) {
		_, err := p.shell("test -b %s", attachedPath)
		return err == nil, err
	})
}

// wantNotAttached fails the test where the target can open the device.
func (p *pod) wantNotAttached() {
	p.Helper()
	if printed, err := p.shell("dd if=%s bs=512 count=1 2>&1", attachedPath); err == nil {
		p.Errorf("the device can be opened: %s", printed)
	}
}

func TestAttachmentPod(t *testing.T) {
	s := newScene(t)
	target := s.target()
	target.wantNotAttached()
	s.claim("data", "64Mi")
	attachment := s.attach("data")
	s.untilState(node{target.node()}, "Attached")
	target.untilAttached()
	if got := target.size(attachedPath); got != "67108864" {
		t.Errorf("the device has %s bytes, want 64Mi", got)
	}
	sum := target.fill(attachedPath)
	attachment.delete()
	target.wantNotAttached()
	if now := target.now().Status.ContainerStatuses[0]; now.RestartCount != 0 {
		t.Errorf("the target was started again: %+v", now)
	}

	s.run(withClaim(podSpec("next", idle...), "data")).wantSum(devicePath, sum)
}

// The commands of the page, which attach without an attachment pod.
func TestAttachByHand(t *testing.T) {
	s := newScene(t)
	target := s.target()
	d := s.newDisk(node{target.node()})
	plugin, err := d.node.plugin(s.Context(), s)
	must(t, err)
	var attached struct{ ID string }
	for line := range strings.Lines(marked(t, "hot-attach.md", "TestAttachByHand")[0]) {
		words := strings.Fields(strings.NewReplacer(
			"rawblockctl", "/rawblockctl", "/dev/disk/by-id/nvme-eui.0000000000000001", d.link,
			"default/db-0/postgres", s.namespace+"/target/"+containerName, " ID", " "+attached.ID,
		).Replace(line))
		if words[1] == "attach" {
			words = append(words, "-o", "json")
		}
		printed, err := s.execute(pluginSpace, plugin.Name, "plugin", words...)
		must(t, err)
		t.Log(printed)
		if words[1] != "attach" {
			continue
		}
		must(t, json.Unmarshal([]byte(printed), &attached))
		s.untilState(d.node, "Attached")
		target.fill(attachedPath)
	}
	target.wantNotAttached()
}

// What a process of the target has open cannot be taken away, so it is waited for.
func TestAttachmentHeldOpen(t *testing.T) {
	s := newScene(t)
	target := s.target()
	on := node{target.node()}
	s.claim("data", "64Mi")
	attachment := s.attach("data")
	target.untilAttached()
	holder := target.mustShell("sleep 1000000 <>%s >/dev/null 2>&1 & echo $!", attachedPath)

	attachment.startDelete(metav1.DeleteOptions{})
	s.untilState(on, "Held")
	target.wantNotAttached()
	if attachment.now().DeletionTimestamp == nil {
		t.Error("the attachment pod is not being deleted")
	}
	target.mustShell("kill %s", holder)
	attachment.untilGone()
}

// The attachment is still there, and can be taken away, when the plugin comes back.
func TestAttachmentOutlivesPlugin(t *testing.T) {
	s := newScene(t)
	target := s.target()
	on := node{target.node()}
	s.claim("data", "64Mi")
	attachment := s.attach("data")
	target.untilAttached()
	sum := target.fill(attachedPath)
	on.killPlugin(s)
	target.wantSum(attachedPath, sum)
	s.untilState(on, "Attached")
	attachment.delete()
	target.wantNotAttached()
}

// After a boot both pods are started again, and the target gets the device again.
func TestAttachmentAfterReboot(t *testing.T) {
	s := newScene(t)
	target := s.target()
	s.claim("data", "64Mi")
	attachment := s.attach("data")
	target.untilAttached()
	sum := target.fill(attachedPath)
	container := target.container()
	node{target.node()}.reboot(s)
	target.untilReplaced(container)
	target.untilAttached()
	target.wantSum(attachedPath, sum)
	attachment.delete()
	target.wantNotAttached()
}
