package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// guides are the pages whose marked commands are run, in this order: the last one
// takes the driver away.
var guides = []string{"deploy.md", "upgrade.md", "uninstall.md"}

// marked are the blocks of commands of a page that say that a test runs them.
func marked(t *testing.T, page, test string) (blocks []string) {
	t.Helper()
	document, err := os.ReadFile("../../docs/" + page)
	must(t, err)
	mark := regexp.MustCompile("(?ms)^ *<!-- run by " + test + " -->\n *```sh\n(.*?)^ *```$")
	for _, block := range mark.FindAllStringSubmatch(string(document), -1) {
		blocks = append(blocks, block[1])
	}
	if len(blocks) == 0 {
		t.Fatalf("%s has no commands for %s", page, test)
	}
	return blocks
}

// The commands of the guides that name nothing of the reader's own work, in their
// order.
func TestGuides(t *testing.T) {
	s := newScene(t)
	dir := tutorialDir(t)
	t.Cleanup(func() { endGuides(s) })
	for _, guide := range guides {
		for _, commands := range marked(t, guide, "TestGuides") {
			t.Logf("%s:\n%s", guide, commands)
			runStep(t, dir, commands)
		}
		if guide == "deploy.md" {
			removeExamples(s)
		}
	}
}

// The commands of the guides for Helm: a pod keeps its volume through the upgrade.
func TestHelm(t *testing.T) {
	s := newScene(t)
	dir := tutorialDir(t)
	t.Cleanup(func() {
		runStep(t, dir, "helm uninstall --ignore-not-found --wait rawblock -n rawblock-csi")
		endGuides(s)
	})
	runStep(t, dir, "kubectl delete -k deploy/kubernetes/overlays/full; kubectl wait --for=delete namespace/rawblock-csi --timeout=2m")
	must(t, os.WriteFile(filepath.Join(dir, "values.yaml"), []byte("hotplug: {enabled: true}\n"), 0o600))
	run := func(guide string) {
		for _, commands := range marked(t, guide, "TestHelm") {
			t.Logf("%s:\n%s", guide, commands)
			runStep(t, dir, commands)
		}
	}
	run("deploy.md")
	s.claim("data", "64Mi")
	pod := s.run(withClaim(podSpec("pod", idle...), "data"))
	sum := pod.fill(devicePath)
	run("upgrade.md")
	runStep(t, dir, "kubectl -n rawblock-csi rollout status daemonset/rawblock-csi-node --timeout=2m")
	pod.wantSum(devicePath, sum)
	pod.delete()
	s.deleteClaim("data")
	run("uninstall.md")
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
