package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// containerdConfig is containerd's own configuration but for what a test machine
// needs.
const containerdConfig = `version = 2
[plugins."io.containerd.internal.v1.opt"]
# /opt is the host's.
path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "` + pauseImage + `"
# Not every machine lets root lower an oom_score_adj (CAP_SYS_RESOURCE).
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "` + pluginDir + `"
conf_dir = "` + networkDir + `"
`

// networkDir has the configuration of the pods' network.
const networkDir = "/var/lib/cni/net.d"

// nodePrograms is what runs on a node, in the order in which it is started.
func (m machine) nodePrograms() []service {
	config := func(name string) string { return configDir + "/" + name }
	return []service{
		{name: "containerd", ready: m.containerdReady, command: []string{"containerd", "--config", config("containerd.toml")}},
		{name: "kubelet", ready: m.answers("http://127.0.0.1:10248/healthz"), command: []string{
			m.binary("kubelet"),
			"--config=" + config("kubelet.json"),
			"--kubeconfig=" + config("kubelet.kubeconfig"),
			"--hostname-override=" + m.name,
			"--node-ip=" + m.address,
			"--v=2",
		}},
		{name: "kube-proxy", ready: m.answers("http://127.0.0.1:10249/healthz"), command: []string{
			m.binary("kube-proxy"), "--config=" + config("kube-proxy.json"), "--v=2",
		}},
	}
}

// configureNode writes the configuration of a node's programs.
func (m machine) configureNode() error {
	return errors.Join(
		writeFile(m.path(configDir, "containerd.toml"), []byte(containerdConfig)),
		writeObject(m.path(networkDir, "rawblock.conflist"), m.podNetwork()),
		writeObject(m.path(configDir, "kubelet.json"), m.kubeletConfig()),
		writeObject(m.path(configDir, "kube-proxy.json"), m.proxyConfig()),
		m.makeCgroup(),
	)
}

// kubeletConfig has kubelet's own directories and limits wherever a node of a test
// machine can have them.
func (m machine) kubeletConfig() object {
	return object{
		"apiVersion":               "kubelet.config.k8s.io/v1beta1",
		"kind":                     "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"tlsCertFile":              configDir + "/kubelet.crt",
		"tlsPrivateKeyFile":        configDir + "/kubelet.key",
		"authentication":           object{"x509": object{"clientCAFile": configDir + "/ca.crt"}},
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + m.cgroup(),
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"enforceNodeAllocatable":   []string{},
		"oomScoreAdj":              0,
		"resolvConf":               "",
		// kubelet would make it on the host: the default is in /usr.
		"volumePluginDir": "/var/lib/kubelet/volumeplugins",
		// No image could be had again, and the disk is the host's.
		"imageGCHighThresholdPercent": 100,
		"evictionHard":                object{"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
		// A node that was started again is Ready sooner.
		"nodeStatusUpdateFrequency": "5s",
		// How soon it notices that a volume in use is to grow.
		"syncFrequency": "10s",
		"featureGates":  object{volumeHealthGate: true},
		// How often it asks for the health of volumes.
		"volumeStatsAggPeriod": "10s",
	}
}

func (m machine) proxyConfig() object {
	return object{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "nftables",
		"hostnameOverride":   m.name,
		"clientConnection":   object{"kubeconfig": configDir + "/kube-proxy.kubeconfig"},
		"bindAddress":        "0.0.0.0",
		"metricsBindAddress": "127.0.0.1:10249",
		// These are the host's limits, which a network namespace cannot set.
		"linux": object{"oomScoreAdj": 0, "conntrack": object{"maxPerCore": 0, "min": 0}},
	}
}

func (m machine) containerdReady(ctx context.Context) error {
	command, err := m.command(ctx, "ctr", "version")
	if err != nil {
		return err
	}
	_, err = output(command)
	return err
}

// load gives images to containerd, but for those that it has already.
func (m machine) load(ctx context.Context, images []image) error {
	for _, image := range images {
		loaded := m.path("images", filepath.Base(image.archive))
		before, err := os.ReadFile(loaded)
		if err == nil && string(before) == image.digest {
			continue
		}
		// The archive is not among the files of the machine.
		archive, err := os.Open(image.archive)
		if err != nil {
			return err
		}
		command, err := m.command(ctx, "ctr", "--namespace=k8s.io", "images", "import", "-")
		if err == nil {
			command.Stdin = archive
			_, err = output(command)
		}
		archive.Close()
		if err != nil {
			return fmt.Errorf("import %s on %s: %w", image.name, m.name, err)
		}
		if err := writeFile(loaded, []byte(image.digest)); err != nil {
			return err
		}
	}
	return nil
}
