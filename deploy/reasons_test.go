package deploy_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/kyaml/yaml"
)

// mustSayWhy are the fields whose reason must be given in a comment: what lets
// the plugin at the host, and what keeps it off.
var mustSayWhy = []string{
	"hostNetwork", "hostPID", "hostIPC",
	"privileged", "capabilities", "allowPrivilegeEscalation", "seccompProfile", "runAsUser", "readOnlyRootFilesystem",
	"seLinuxOptions", "mountPropagation", "automountServiceAccountToken", "priorityClassName", "tolerations",
	"attachRequired", "podInfoOnMount", "fsGroupPolicy", "storageCapacity", "volumeLifecycleModes", "seLinuxMount", "requiresRepublish",
}

// listsMustSayWhy are the lists each of whose items needs a reason.
var listsMustSayWhy = []string{"volumeMounts", "volumes", "rules"}

func TestPrivilegesHaveReasons(t *testing.T) {
	for _, file := range []string{
		base + "/daemonset.yaml", base + "/csidriver.yaml", base + "/namespace.yaml",
		sidecars + "/daemonset.yaml",
		components + "/provisioning/daemonset.yaml", components + "/provisioning/rbac.yaml",
		components + "/expansion/deployment.yaml", components + "/expansion/rbac.yaml",
		components + "/snapshots/daemonset.yaml", components + "/snapshots/rbac.yaml",
		components + "/hotplug/daemonset.yaml",
		components + "/encryption/daemonset.yaml",
		components + "/kubelet/microk8s/daemonset.yaml", components + "/kubelet/microk8s/deployment.yaml",
		components + "/kubelet/k0s/daemonset.yaml", components + "/kubelet/k0s/deployment.yaml",
		components + "/runtime/k3s/daemonset.yaml", components + "/runtime/microk8s/daemonset.yaml",
		components + "/runtime/k0s/daemonset.yaml", components + "/runtime/crio/daemonset.yaml",
		components + "/openshift/daemonset.yaml", components + "/openshift/deployment.yaml",
		talos + "/daemonset.yaml",
	} {
		t.Run(file, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for document := range strings.SplitSeq(string(text), "\n---\n") {
				checkReasons(t, document)
			}
		})
	}
}

func checkReasons(t *testing.T, text string) {
	t.Helper()
	document, err := yaml.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(text, "\n")
	for _, node := range needReasons(document.YNode()) {
		if above := strings.TrimSpace(lines[node.Line-2]); !strings.HasPrefix(above, "#") {
			t.Errorf("line %d of its document: no comment above says why: %s", node.Line, strings.TrimSpace(lines[node.Line-1]))
		}
	}
}

// needReasons returns the fields and items below a node that need a reason.
func needReasons(node *yaml.Node) []*yaml.Node {
	var found []*yaml.Node
	if node.Kind == yaml.MappingNode {
		for i := 0; i < len(node.Content); i += 2 {
			key, value := node.Content[i], node.Content[i+1]
			if slices.Contains(mustSayWhy, key.Value) {
				found = append(found, key)
			}
			if slices.Contains(listsMustSayWhy, key.Value) {
				found = append(found, value.Content...)
			}
		}
	}
	for _, child := range node.Content {
		found = append(found, needReasons(child)...)
	}
	return found
}
