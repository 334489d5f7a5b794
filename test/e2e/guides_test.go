package e2e

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// guides are the pages whose marked commands are run, in this order: the last one
// takes the driver away.
var guides = []string{"deploy.md", "upgrade.md", "uninstall.md"}

// marked are the blocks of commands of a page that say that this test runs them.
var marked = regexp.MustCompile("(?ms)^<!-- run by TestGuides -->\n```sh\n(.*?)^```$")

// The commands of the guides that name nothing of the reader's own work, in their
// order.
func TestGuides(t *testing.T) {
	s := newScene(t)
	folder := tutorialFolder(t)
	t.Cleanup(func() { endGuides(s) })
	for _, guide := range guides {
		document, err := os.ReadFile("../../docs/" + guide)
		must(t, err)
		blocks := marked.FindAllStringSubmatch(string(document), -1)
		if len(blocks) == 0 {
			t.Errorf("%s has no commands", guide)
		}
		for _, block := range blocks {
			t.Logf("%s:\n%s", guide, block[1])
			runStep(t, folder, block[1])
		}
		if guide == "deploy.md" {
			removeExamples(s)
		}
	}
}

// removeExamples deletes what the guide's examples have made, snapshots before their
// volumes.
func removeExamples(s *scene) {
	s.Helper()
	// A snapshot goes only while its sidecar runs, and not each overlay has that.
	full := exec.Command("kubectl", "apply", "--server-side", "-k", "../../deploy/kubernetes/overlays/full")
	if printed, err := full.CombinedOutput(); err != nil {
		s.Errorf("deploy all of the driver: %v\n%s", err, printed)
	}
	for _, example := range []string{"hotplug", "restored", "provisioned"} {
		command := exec.Command("kubectl", "delete", "--ignore-not-found", "-k", "../../deploy/kubernetes/examples/"+example)
		if printed, err := command.CombinedOutput(); err != nil {
			s.Errorf("delete the example %s: %v\n%s", example, err, printed)
		}
	}
	s.eventually("the volumes of the examples are gone", func(ctx context.Context) (bool, error) {
		list, err := s.kube.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
		return err == nil && len(list.Items) == 0, err
	})
}

// endGuides deletes what a test that failed has left, and deploys again what the other
// tests need.
func endGuides(s *scene) {
	if s.Failed() {
		removeExamples(s)
	}
	if _, err := cluster("up"); err != nil {
		s.Error(err)
	}
}
