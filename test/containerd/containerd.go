package containerd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime is a containerd, and the pods in it.
type Runtime struct {
	// Socket is where it serves CRI.
	Socket string
	dir    string
	// cgroup is the name of the cgroup that its pods are in. It is like no other.
	cgroup string
	// made are the directories that shims make outside of ours, and that were not there.
	made     []string
	command  *exec.Cmd
	conn     *grpc.ClientConn
	pods     cri.RuntimeServiceClient
	images   cri.ImageServiceClient
	attempts atomic.Uint32
}

// Config says where a containerd keeps what it has.
type Config struct {
	// Dir is an empty directory, which the caller removes after Delete. Its path
	// must be short, as that of a socket (unix(7)).
	Dir string
	// Prefix is what the name of the cgroup of its pods begins with.
	Prefix string
}

// Start starts a containerd with the image in it. It is the caller's to delete.
func Start(ctx context.Context, config Config) (*Runtime, error) {
	r := &Runtime{
		Socket: filepath.Join(config.Dir, "cri.sock"),
		dir:    config.Dir,
		cgroup: config.Prefix + "-" + strings.ToLower(rand.Text()[:8]),
	}
	for _, dir := range shimDirs {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			r.made = append(r.made, dir)
		}
	}
	if err := os.WriteFile(r.path("config.toml"), []byte(r.config()), 0o600); err != nil {
		return nil, fmt.Errorf("configure containerd: %w", err)
	}
	if err := writeImage(r.path("image.tar")); err != nil {
		return nil, fmt.Errorf("make an image: %w", err)
	}
	conn, err := grpc.NewClient("unix://"+r.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond},
			MinConnectTimeout: time.Minute,
		}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return nil, fmt.Errorf("reach containerd: %w", err)
	}
	r.conn, r.pods, r.images = conn, cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	err = r.Restart(ctx)
	if err == nil {
		err = r.importImage(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, r.Delete(context.WithoutCancel(ctx)))
	}
	return r, nil
}

func (r *Runtime) path(name string) string { return filepath.Join(r.dir, name) }

// config is the configuration: containerd's own defaults, with its directories moved
// here. Not every machine lets a process lower its oom_score_adj.
func (r *Runtime) config() string {
	return fmt.Sprintf(`version = 2
root = %[1]q
state = %[2]q
[grpc]
address = %[3]q
[plugins."io.containerd.internal.v1.opt"]
path = %[4]q
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = %[5]q
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = %[6]q
`, r.path("root"), r.path("state"), r.Socket, r.path("opt"), image, r.path("runc"))
}

// Restart starts the daemon again on the same directories, after Kill.
func (r *Runtime) Restart(ctx context.Context) error {
	log, err := os.OpenFile(r.path("containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make a log for containerd: %w", err)
	}
	defer log.Close()
	// It ends when it is told to, and not with ctx.
	command := exec.Command("containerd", "--config", r.path("config.toml"))
	command.Stdout, command.Stderr = log, log
	// Ctrl-C is for our own process, which deletes the pods then.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	r.command = command
	return r.wait(ctx, "the runtime is ready", func() (bool, error) {
		response, err := r.pods.Status(ctx, &cri.StatusRequest{})
		for _, condition := range response.GetStatus().GetConditions() {
			if condition.GetType() == cri.RuntimeReady {
				return condition.GetStatus(), err
			}
		}
		return false, err
	})
}

// importImage gives the image to containerd, and waits until CRI has heard of it.
func (r *Runtime) importImage(ctx context.Context) error {
	ctr := exec.CommandContext(ctx, "ctr", "--address", r.Socket, "--namespace", "k8s.io", "images", "import", r.path("image.tar"))
	if output, err := ctr.CombinedOutput(); err != nil {
		return fmt.Errorf("ctr images import: %w: %s", err, output)
	}
	return r.wait(ctx, "the image is there", func() (bool, error) {
		response, err := r.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image}})
		return response.GetImage() != nil, err
	})
}

// wait waits until something is so: containerd does not answer at once.
func (r *Runtime) wait(ctx context.Context, what string, is func() (bool, error)) error {
	for {
		ok, err := is()
		if err == nil && ok {
			return nil
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(r.path("containerd.log")) // Only to say more.
			return fmt.Errorf("wait until %s: %w, %w; containerd logged:\n%s", what, ctx.Err(), err, log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Version is the version of containerd, such as 1.6.20.
func (r *Runtime) Version(ctx context.Context) (string, error) {
	response, err := r.pods.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return "", fmt.Errorf("ask for the version of containerd: %w", err)
	}
	return strings.TrimPrefix(response.GetRuntimeVersion(), "v"), nil
}

// Kill ends the daemon as kill -9 does. The containers go on.
func (r *Runtime) Kill() error { return r.end(syscall.SIGKILL) }

func (r *Runtime) end(signal syscall.Signal) error {
	if r.command == nil {
		return nil
	}
	command := r.command
	r.command = nil
	if err := command.Process.Signal(signal); err != nil {
		return fmt.Errorf("end containerd: %w", err)
	}
	command.Wait() // It says that it was killed.
	return nil
}
