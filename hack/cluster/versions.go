package main

import (
	"slices"
	"strings"
)

// The versions that are built. The manifests of deploy/kubernetes ask for these
// sidecars.
const (
	kubernetesVersion  = "v1.37.2"
	etcdVersion        = "v3.7.3"
	provisionerVersion = "v6.4.0"
	resizerVersion     = "v2.3.0"
	snapshotterVersion = "v8.7.0"
	helmVersion        = "v4.3.1"
)

// The images that are not those of a program of ours or a sidecar.
const (
	// pauseImage has the name that kubeadm of this Kubernetes gives its pause image.
	pauseImage   = "registry.k8s.io/pause:3.10.2"
	busyboxImage = "docker.io/library/busybox:1.37"
)

// source is a Go module that programs are built from.
type source struct {
	module, version string
	// siblings is the version of the modules in the same repository, which the
	// module's go.mod replaces by directories.
	siblings string
	// shared has it built with the libraries of the cluster's Kubernetes, and not
	// with those of its release.
	shared bool
}

var (
	kubernetes = source{
		module: "k8s.io/kubernetes", version: kubernetesVersion,
		siblings: "v0." + strings.TrimPrefix(kubernetesVersion, "v1."),
	}
	etcd        = source{module: "go.etcd.io/etcd/server/v3", version: etcdVersion, siblings: etcdVersion}
	provisioner = source{module: "github.com/kubernetes-csi/external-provisioner/v6", version: provisionerVersion}
	resizer     = source{module: "github.com/kubernetes-csi/external-resizer/v2", version: resizerVersion}
	snapshotter = source{
		module: "github.com/kubernetes-csi/external-snapshotter/v8", version: snapshotterVersion,
		siblings: snapshotterVersion,
	}
	// helm has no image and runs nothing of the cluster's, so it may as well be built fast.
	helm = source{module: "helm.sh/helm/v4", version: helmVersion, shared: true}
	// snapshotClient has the definitions of the snapshots' kinds.
	snapshotClient = source{module: "github.com/kubernetes-csi/external-snapshotter/client/v8", version: snapshotterVersion}
)

// program is built from a package of a source.
type program struct {
	name string
	source
	// dir is the package's in the module.
	dir string
	// image is what an image of it is called, without its version. Empty: it needs none.
	image string
	// test says that it is the tests of the package.
	test bool
}

// programs are all that is built. With RAWBLOCK_SHARED_LIBRARIES the sidecars share
// what is compiled for Kubernetes, which saves most of the time that they take.
func (c *cluster) programs() []program {
	built := slices.Clone(programs)
	for i, p := range built {
		built[i].shared = p.shared || c.sharedLibraries && p.image != ""
	}
	return built
}

// programs are what is built of which release.
var programs = []program{
	{name: "etcd", source: etcd},
	{name: "csi-provisioner", source: provisioner, dir: "cmd/csi-provisioner", image: "registry.k8s.io/sig-storage/csi-provisioner"},
	{name: "csi-resizer", source: resizer, dir: "cmd/csi-resizer", image: "registry.k8s.io/sig-storage/csi-resizer"},
	{name: "csi-snapshotter", source: snapshotter, dir: "cmd/csi-snapshotter", image: "registry.k8s.io/sig-storage/csi-snapshotter"},
	{name: "snapshot-controller", source: snapshotter, dir: "cmd/snapshot-controller", image: "registry.k8s.io/sig-storage/snapshot-controller"},
	{name: "kubectl", source: kubernetes, dir: "cmd/kubectl"},
	{name: "kube-proxy", source: kubernetes, dir: "cmd/kube-proxy"},
	{name: "kube-scheduler", source: kubernetes, dir: "cmd/kube-scheduler"},
	{name: "kube-controller-manager", source: kubernetes, dir: "cmd/kube-controller-manager"},
	{name: "kube-apiserver", source: kubernetes, dir: "cmd/kube-apiserver"},
	{name: "kubelet", source: kubernetes, dir: "cmd/kubelet"},
	{name: "helm", source: helm, dir: "cmd/helm"},
}

// linkerFlags put the version into the program, as each one's own build does.
func (p program) linkerFlags() string {
	flags := "-s -w"
	set := func(name, value string) { flags += " -X " + name + "=" + value }
	if p.source != kubernetes {
		set("main.version", p.version)
		return flags
	}
	// hack/lib/version.sh of Kubernetes.
	major, rest, _ := strings.Cut(strings.TrimPrefix(p.version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		set(pkg+".gitVersion", p.version)
		set(pkg+".gitMajor", major)
		set(pkg+".gitMinor", minor)
		set(pkg+".gitTreeState", "clean")
	}
	return flags
}
