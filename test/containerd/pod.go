package containerd

import (
	"context"
	"fmt"
	"maps"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The labels by which kubelet says whose a container is
// (pkg/kubelet/types/labels.go in Kubernetes).
const (
	labelNamespace = "io.kubernetes.pod.namespace"
	labelPod       = "io.kubernetes.pod.name"
	labelUID       = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"
)

// Pod is what kubelet knows of a pod.
type Pod struct {
	Namespace, Name, UID string
	Annotations          map[string]string
}

func (p Pod) labels() map[string]string {
	return map[string]string{labelNamespace: p.Namespace, labelPod: p.Name, labelUID: p.UID}
}

// Sandbox is the sandbox of a pod.
type Sandbox struct {
	Pod
	// ID is the ID that containerd gave it.
	ID      string
	runtime *Runtime
	config  *cri.PodSandboxConfig
}

// Run starts the sandbox of a pod. One that had one before gets another.
func (r *Runtime) Run(ctx context.Context, pod Pod) (*Sandbox, error) {
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: pod.UID, Attempt: r.attempts.Add(1)},
		Labels:       pod.labels(),
		Annotations:  pod.Annotations,
		LogDirectory: r.path("logs"),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/" + r.cgroup + "/pod" + pod.UID,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				// A network of its own takes a CNI plugin.
				Network: cri.NamespaceMode_NODE,
				Pid:     cri.NamespaceMode_CONTAINER,
			}},
		},
	}
	response, err := r.pods.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, fmt.Errorf("run the sandbox of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return &Sandbox{Pod: pod, ID: response.GetPodSandboxId(), runtime: r, config: config}, nil
}

// Stop ends the sandbox and its containers, and leaves it in the list.
func (s *Sandbox) Stop(ctx context.Context) error {
	if _, err := s.runtime.pods.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: s.ID}); err != nil {
		return fmt.Errorf("stop the sandbox of pod %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}

// Delete stops the sandbox and removes it with its containers.
func (s *Sandbox) Delete(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	if _, err := s.runtime.pods.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.ID}); err != nil {
		return fmt.Errorf("remove the sandbox of pod %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}

// Container is a container of a pod. It does nothing until it is told to.
type Container struct {
	// ID is the ID that containerd gave it.
	ID string
	// Name is its name in the pod.
	Name    string
	runtime *Runtime
}

// Start starts a container of the name in the pod. One that is started after
// another of that name is the same one, restarted.
func (s *Sandbox) Start(ctx context.Context, name string) (*Container, error) {
	labels := maps.Clone(s.config.GetLabels())
	labels[labelContainer] = name
	created, err := s.runtime.pods.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId:  s.ID,
		SandboxConfig: s.config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name, Attempt: s.runtime.attempts.Add(1)},
			Image:    &cri.ImageSpec{Image: image},
			Command:  sleep,
			Labels:   labels,
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: s.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
			}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", name, err)
	}
	container := &Container{ID: created.GetContainerId(), Name: name, runtime: s.runtime}
	if _, err := s.runtime.pods.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container.ID}); err != nil {
		return nil, fmt.Errorf("start container %s: %w", name, err)
	}
	return container, nil
}

// Exec runs a command of busybox in the container and returns what it printed.
// Where it fails, that is in the error as well.
func (c *Container) Exec(ctx context.Context, command ...string) (string, error) {
	response, err := c.runtime.pods.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: command})
	if err != nil {
		return "", fmt.Errorf("%s in the container: %w", strings.Join(command, " "), err)
	}
	said := strings.TrimSpace(string(response.GetStdout()) + string(response.GetStderr()))
	if code := response.GetExitCode(); code != 0 {
		return said, fmt.Errorf("%s in the container: exit code %d: %s", strings.Join(command, " "), code, said)
	}
	return said, nil
}

// Stop kills the container, and leaves it in the list.
func (c *Container) Stop(ctx context.Context) error {
	if _, err := c.runtime.pods.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID}); err != nil {
		return fmt.Errorf("stop container %s: %w", c.Name, err)
	}
	return nil
}

// Delete kills the container and removes it.
func (c *Container) Delete(ctx context.Context) error {
	if err := c.Stop(ctx); err != nil {
		return err
	}
	if _, err := c.runtime.pods.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
		return fmt.Errorf("remove container %s: %w", c.Name, err)
	}
	return nil
}
