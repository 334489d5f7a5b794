package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// node is a node of the cluster, as root on it sees it.
type node struct{ name string }

func (s *scene) nodes() []node { return []node{{"node-1"}, {"node-2"}} }

// clusterProgram is that of hack/cluster, which is in the PATH beside kubectl.
const clusterProgram = "cluster"

// cluster calls it.
func cluster(args ...string) (string, error) {
	// It outlives no call, so no context ends it: a machine would be left half started.
	command := exec.Command(clusterProgram, args...)
	var messages strings.Builder
	command.Stderr = &messages
	printed, err := command.Output()
	if err != nil {
		err = fmt.Errorf("cluster %s: %w\n%s%s", strings.Join(args, " "), err, printed, messages.String())
	}
	return strings.TrimSpace(string(printed)), err
}

// shell runs a line of a shell where the programs of the node run, and returns what it prints.
func (n node) shell(line string) (string, error) {
	return cluster("exec", n.name, "sh", "-c", line)
}

func (n node) mustShell(s *scene, format string, args ...any) string {
	s.Helper()
	printed, err := n.shell(fmt.Sprintf(format, args...))
	must(s, err)
	return printed
}

// end ends a program of the node with a signal, and start starts it again.
func (n node) end(s *scene, program, signal string) {
	s.Helper()
	_, err := cluster("kill", n.name, program, signal)
	must(s, err)
}

func (n node) start(s *scene) {
	s.Helper()
	_, err := cluster("start", n.name)
	must(s, err)
}

// reboot ends all of the node at once, as when its power is cut, and starts it again.
func (n node) reboot(s *scene) {
	s.Helper()
	_, err := cluster("reboot", n.name)
	must(s, err)
}

// leftovers prints what is left of volumes on a node: mounts, loop devices on files
// of the pool, what kubelet had of them, the files and the records. The lock of the
// state directory stays.
const leftovers = `
grep -F /volumeDevices/ /proc/self/mountinfo
grep -sF /var/lib/rawblock-csi/files/ /sys/block/loop*/loop/backing_file
find /var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices -mindepth 1 ! -path '*/publish' ! -path '*/staging' 2>/dev/null
find /var/lib/kubelet/pods -path '*/volumeDevices/*' -mindepth 3 \( -type l -o -type b -o -type f \) 2>/dev/null
find /var/lib/rawblock-csi/files/volumes /var/lib/rawblock-csi/files/snapshots -mindepth 1 2>/dev/null
find /run/rawblock-csi -type f ! -name lock 2>/dev/null
true`

// wantNothingLeft fails the test where anything is left on the node, or stays there.
func (n node) wantNothingLeft(s *scene) {
	s.Helper()
	// The other node's loop devices are seen on this one too: they go on their own.
	s.eventually("nothing is left on "+n.name, func(context.Context) (bool, error) {
		left, err := n.shell(leftovers)
		if err == nil && left != "" {
			err = errors.New(left)
		}
		return err == nil, err
	})
}

// plugin is the pod of the plugin on the node.
func (n node) plugin(ctx context.Context, s *scene) (*corev1.Pod, error) {
	list, err := s.kube.CoreV1().Pods(pluginSpace).List(ctx, metav1.ListOptions{
		LabelSelector: pluginLabels, FieldSelector: "spec.nodeName=" + n.name,
	})
	if err != nil {
		return nil, err
	}
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			return &pod, nil
		}
	}
	return nil, fmt.Errorf("the plugin has no pod on %s", n.name)
}
