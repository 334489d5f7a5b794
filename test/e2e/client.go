package e2e

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	driverName   = "csi.rawblock.dev"
	topologyKey  = "topology.rawblock.dev/node"
	hostnameKey  = "kubernetes.io/hostname"
	pluginSpace  = "rawblock-csi"
	pluginName   = "rawblock-csi-node"
	pluginLabels = "app.kubernetes.io/name=rawblock-csi,app.kubernetes.io/component=node"
)

// patience is how long something that must happen may take. Nothing is said by how
// long it took.
const patience = 2 * time.Minute

// scene is what a test has of the cluster: a namespace and a storage class of its
// own, which go with it.
type scene struct {
	*testing.T
	config  *rest.Config
	kube    kubernetes.Interface
	dynamic dynamic.Interface
	// namespace is also the name of the class and of whatever else has no namespace.
	namespace string
	// afterwards is what else must be taken away, once no pod needs it.
	afterwards []func()
}

// newScene makes the namespace and the class of a test.
func newScene(t *testing.T) *scene {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	must(t, err)
	config.QPS, config.Burst = 100, 200
	s := &scene{T: t, config: config}
	s.kube, err = kubernetes.NewForConfig(config)
	must(t, err)
	s.dynamic, err = dynamic.NewForConfig(config)
	must(t, err)

	space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}
	space, err = s.kube.CoreV1().Namespaces().Create(t.Context(), space, metav1.CreateOptions{})
	must(t, err)
	s.namespace = space.Name
	begin := metav1.Now()
	t.Cleanup(func() { s.end(begin) })
	s.makeClass()
	// Without it no pod can be made.
	s.until("the namespace has its service account", func(ctx context.Context) (bool, error) {
		_, err := s.kube.CoreV1().ServiceAccounts(s.namespace).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, ignoreMissing(err)
	})
	return s
}

func (s *scene) makeClass() {
	s.Helper()
	waits, grows := storagev1.VolumeBindingWaitForFirstConsumer, true
	class := &storagev1.StorageClass{
		ObjectMeta:           metav1.ObjectMeta{Name: s.namespace},
		Provisioner:          driverName,
		VolumeBindingMode:    &waits,
		AllowVolumeExpansion: &grows,
	}
	_, err := s.kube.StorageV1().StorageClasses().Create(s.Context(), class, metav1.CreateOptions{})
	must(s, err)
}

// end deletes what the test made, and sees that nothing of it is left. Where it
// failed, it first shows what may tell why.
func (s *scene) end(begin metav1.Time) {
	// The test's own context has ended.
	ctx := context.Background()
	if s.Failed() {
		s.dump(ctx, begin)
	}
	failed := s.Failed()
	s.deletePods(ctx)
	must(s, s.kube.CoreV1().Namespaces().Delete(ctx, s.namespace, metav1.DeleteOptions{}))
	s.eventually("the namespace is gone", func(ctx context.Context) (bool, error) {
		_, err := s.kube.CoreV1().Namespaces().Get(ctx, s.namespace, metav1.GetOptions{})
		return apierrors.IsNotFound(err), ignoreMissing(err)
	})
	s.eventually("the volumes are gone", func(ctx context.Context) (bool, error) {
		volumes, err := s.volumes(ctx)
		return len(volumes) == 0, err
	})
	must(s, s.kube.StorageV1().StorageClasses().Delete(ctx, s.namespace, metav1.DeleteOptions{}))
	for _, do := range s.afterwards {
		do()
	}
	for _, node := range s.nodes() {
		node.wantNothingLeft(s)
	}
	if s.Failed() && !failed {
		s.dump(ctx, begin)
	}
}

// deletePods deletes the pods before the rest of the namespace: while there are any,
// the namespace's controller looks again after many seconds only.
func (s *scene) deletePods(ctx context.Context) {
	pods := s.kube.CoreV1().Pods(s.namespace)
	must(s, pods.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
	s.eventually("the pods are gone", func(ctx context.Context) (bool, error) {
		list, err := pods.List(ctx, metav1.ListOptions{})
		return err == nil && len(list.Items) == 0, err
	})
}

// volumes are the PersistentVolumes of the test's claims.
func (s *scene) volumes(ctx context.Context) ([]corev1.PersistentVolume, error) {
	list, err := s.kube.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var own []corev1.PersistentVolume
	for _, volume := range list.Items {
		if volume.Spec.ClaimRef != nil && volume.Spec.ClaimRef.Namespace == s.namespace {
			own = append(own, volume)
		}
	}
	return own, nil
}

// until asks until something is so, and ends the test where it does not become so.
func (s *scene) until(what string, is wait.ConditionWithContextFunc) {
	s.Helper()
	if !s.eventually(what, is) {
		s.FailNow()
	}
}

// eventually does the same, but lets the test go on, and also serves when it is over.
func (s *scene) eventually(what string, is wait.ConditionWithContextFunc) bool {
	s.Helper()
	var last error
	err := wait.PollUntilContextTimeout(context.Background(), 200*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		done, err := is(ctx)
		last = err
		return done && err == nil, nil // An API server that is asked again may answer.
	})
	if err != nil {
		s.Errorf("wait until %s: %v; the last answer was: %v", what, err, last)
	}
	return err == nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ignoreMissing(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// dump shows what may tell why a test failed.
func (s *scene) dump(ctx context.Context, begin metav1.Time) {
	pods, _ := s.kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{}) // Shown as far as it can be had.
	for _, pod := range pods.Items {
		if pod.Namespace != s.namespace && pod.Namespace != pluginSpace {
			continue
		}
		s.Logf("pod %s/%s on %q: %s %s", pod.Namespace, pod.Name, pod.Spec.NodeName, pod.Status.Phase, describe(&pod))
	}
	events, _ := s.kube.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{})
	for _, event := range events.Items {
		s.Logf("event %s %s %s: %s", event.InvolvedObject.Kind, event.InvolvedObject.Name, event.Reason, event.Message)
	}
	for _, pod := range pods.Items {
		if pod.Namespace != pluginSpace {
			continue
		}
		lines := int64(200)
		log, err := s.kube.CoreV1().Pods(pluginSpace).GetLogs(pod.Name, &corev1.PodLogOptions{
			Container: "plugin", SinceTime: &begin, TailLines: &lines,
		}).DoRaw(ctx)
		if err == nil && len(log) > 0 {
			s.Logf("%s on %s:\n%s", pod.Name, pod.Spec.NodeName, worthReading(string(log)))
		}
	}
}

// worthReading leaves out of a log the calls that tell nothing of a test.
func worthReading(log string) string {
	var lines []string
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "GetPluginInfo") && !strings.Contains(line, "GetCapabilities") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}
