package main

import (
	"context"
	"os/exec"
)

// volumeHealthGate has kubelet ask drivers for the health of volumes, and the API server
// keep what they say.
const volumeHealthGate = "CSIVolumeHealth"

// controlPlane is what runs on the machine of the control plane, in the order in
// which it is started.
func (m machine) controlPlane() []service {
	config := func(name string) string { return configDir + "/" + name }
	return []service{
		{name: "etcd", ready: m.answers("http://127.0.0.1:2379/readyz"), command: []string{
			m.binary("etcd"),
			"--name=control",
			"--data-dir=/var/lib/etcd",
			// Nothing in it is worth a wait for the disk.
			"--unsafe-no-fsync",
			"--listen-client-urls=http://127.0.0.1:2379",
			"--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380",
			"--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=control=http://127.0.0.1:2380",
		}},
		{name: "kube-apiserver", ready: m.cluster.apiServerReady, command: []string{
			m.binary("kube-apiserver"),
			"--etcd-servers=http://127.0.0.1:2379",
			"--secure-port=6443",
			"--advertise-address=" + m.address,
			"--service-cluster-ip-range=" + serviceNetwork,
			"--tls-cert-file=" + config("apiserver.crt"),
			"--tls-private-key-file=" + config("apiserver.key"),
			"--client-ca-file=" + config("ca.crt"),
			"--kubelet-certificate-authority=" + config("ca.crt"),
			"--kubelet-client-certificate=" + config("apiserver-kubelet-client.crt"),
			"--kubelet-client-key=" + config("apiserver-kubelet-client.key"),
			// The host cannot resolve the nodes' names.
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + config("sa.pub"),
			"--service-account-signing-key-file=" + config("sa.key"),
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--allow-privileged=true",
			"--feature-gates=" + volumeHealthGate + "=true",
			"--v=2",
		}},
		{name: "kube-controller-manager", ready: running, command: []string{
			m.binary("kube-controller-manager"),
			"--kubeconfig=" + config("kube-controller-manager.kubeconfig"),
			"--authentication-kubeconfig=" + config("kube-controller-manager.kubeconfig"),
			"--authorization-kubeconfig=" + config("kube-controller-manager.kubeconfig"),
			"--bind-address=127.0.0.1",
			// There is one, and the time until a lease ends would be waited for.
			"--leader-elect=false",
			"--use-service-account-credentials=true",
			"--service-account-private-key-file=" + config("sa.key"),
			"--root-ca-file=" + config("ca.crt"),
			// It would make it on the host: the default is in /usr.
			"--flex-volume-plugin-dir=" + config("volumeplugins"),
			"--v=2",
		}},
		{name: "kube-scheduler", ready: running, command: []string{
			m.binary("kube-scheduler"),
			"--kubeconfig=" + config("kube-scheduler.kubeconfig"),
			"--authentication-kubeconfig=" + config("kube-scheduler.kubeconfig"),
			"--authorization-kubeconfig=" + config("kube-scheduler.kubeconfig"),
			"--bind-address=127.0.0.1",
			"--leader-elect=false",
			"--v=2",
		}},
	}
}

// running asks nothing more of a service.
func running(context.Context) error { return nil }

// answers asks for a URL on the machine.
func (m machine) answers(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		command, err := m.command(ctx, "busybox", "wget", "-q", "-O", "/dev/null", url)
		if err != nil {
			return err
		}
		_, err = output(command)
		return err
	}
}

func (c *cluster) apiServerReady(ctx context.Context) error {
	_, err := c.kubectl(ctx, "get", "--raw=/readyz")
	return err
}

// kubectl calls the API server as its administrator.
func (c *cluster) kubectl(ctx context.Context, args ...string) ([]byte, error) {
	return output(c.kubectlCommand(ctx, args...))
}

func (c *cluster) kubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	options := []string{"--kubeconfig=" + c.kubeconfig(), "--cache-dir=" + c.path("kubectl")}
	return exec.CommandContext(ctx, c.binary("kubectl"), append(options, args...)...)
}
