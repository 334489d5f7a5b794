// Command cluster starts a real Kubernetes cluster on one machine, from nothing,
// with the plugin in it as deploy/kubernetes deploys it, and takes it down again
// so that nothing is left. README.md says how it is made.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
)

const usage = `Usage:
  cluster up                          start the cluster, or what of it does not run
  cluster down                        take it down; nothing is left
  cluster env                         print the shell's variables for kubectl
  cluster build                       only build and cache what up runs
  cluster build-e2e                   build and cache Kubernetes' own tests
  cluster load-e2e                    give what these tests run to the nodes, and put them into env's PATH
  cluster exec MACHINE COMMAND...     run a command on control, node-1 or node-2
  cluster kill MACHINE PROGRAM SIGNAL end a program of a machine, such as kubelet, with TERM or KILL
  cluster start MACHINE               start what does not run on a machine
  cluster reboot MACHINE              end all of a machine at once, and start it again`

// machineCommand is what the program calls itself with, in namespaces of its own.
const machineCommand = "be-machine"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 4 && args[0] == machineCommand {
		return beMachine(args[1], args[2], args[3])
	}
	c, err := newCluster()
	if err != nil {
		return err
	}
	switch {
	case len(args) == 1 && args[0] == "up":
		return c.alone(ctx, c.up)
	case len(args) == 1 && args[0] == "down":
		return c.alone(ctx, c.down)
	case len(args) == 1 && args[0] == "env":
		return c.env()
	case len(args) == 1 && args[0] == "build":
		return c.alone(ctx, c.build)
	case len(args) == 1 && args[0] == "build-e2e":
		return c.alone(ctx, c.buildE2E)
	case len(args) == 1 && args[0] == "load-e2e":
		return c.alone(ctx, c.loadE2E)
	case len(args) >= 2:
		m, err := c.machine(args[1])
		if err != nil {
			return err
		}
		return m.run(ctx, args[0], args[2:])
	}
	return errors.New("no such command\n" + usage)
}

// run does what is asked of one machine.
func (m machine) run(ctx context.Context, command string, args []string) error {
	switch {
	case command == "exec" && len(args) >= 1:
		return m.exec(args)
	case command == "kill" && len(args) == 2:
		return m.kill(ctx, args[0], args[1])
	case command == "start" && len(args) == 0:
		return m.start(ctx)
	case command == "reboot" && len(args) == 0:
		return m.reboot(ctx)
	}
	return errors.New("no such command\n" + usage)
}

// cluster is where everything is.
type cluster struct {
	// dir has whatever belongs to a cluster that is up. Without it there is none.
	dir string
	// cache keeps what was built, by its version, also when the cluster is down.
	cache string
	// repository is the plugin's source.
	repository string
	// overlay is the directory in the repository with what is deployed of the plugin.
	overlay string
	// sharedLibraries has the sidecars built with other libraries than their releases.
	sharedLibraries bool
}

func newCluster() (*cluster, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root: it makes namespaces, mounts and cgroups")
	}
	repository, err := findRepository()
	if err != nil {
		return nil, err
	}
	user, _ := os.UserCacheDir() // Without one it is found below.
	cache := cmp.Or(os.Getenv("RAWBLOCK_CACHE"), filepath.Join(user, "rawblock-csi"))
	dir := cmp.Or(os.Getenv("RAWBLOCK_CLUSTER"), "/var/lib/rawblock-cluster")
	if !filepath.IsAbs(dir) || !filepath.IsAbs(cache) {
		return nil, fmt.Errorf("RAWBLOCK_CLUSTER=%s and RAWBLOCK_CACHE=%s must be absolute paths", dir, cache)
	}
	return &cluster{
		dir:        filepath.Clean(dir),
		cache:      filepath.Clean(cache),
		repository: repository,
		overlay:    cmp.Or(os.Getenv("RAWBLOCK_OVERLAY"), defaultOverlay),

		sharedLibraries: os.Getenv("RAWBLOCK_SHARED_LIBRARIES") != "",
	}, nil
}

// findRepository goes up from the working directory.
func findRepository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "deploy/kubernetes/base")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("call it in the repository of rawblock-csi: there is no deploy/kubernetes/base here or above")
		}
	}
}

// alone does something while no other process does.
func (c *cluster) alone(ctx context.Context, do func(context.Context) error) error {
	if err := os.MkdirAll(c.cache, 0o755); err != nil {
		return err
	}
	lock, err := os.Create(filepath.Join(c.cache, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("another up, down or build is under way: lock %s: %w", lock.Name(), err)
	}
	return do(ctx)
}

func (c *cluster) path(names ...string) string {
	return filepath.Join(append([]string{c.dir}, names...)...)
}

// env prints what a shell needs to speak to the cluster.
func (c *cluster) env() error {
	if _, err := os.Stat(c.kubeconfig()); err != nil {
		return fmt.Errorf("%w; start the cluster first, with up", err)
	}
	fmt.Printf("export KUBECONFIG=%s\nexport PATH=%s:$PATH\n", c.kubeconfig(), c.path("bin"))
	return nil
}

// checkMachine says what is missing before anything is made.
func checkMachine() error {
	for _, need := range []struct{ program, pkg string }{
		{"go", "golang"},
		{"containerd", "containerd"},
		{"ctr", "containerd"},
		{"runc", "runc"},
		{bridgePlugin, "containernetworking-plugins"},
		{"busybox", "busybox-static"},
		{"ip", "iproute2"},
		{"iptables", "iptables"},
		{"nft", "nftables"},
		{"conntrack", "conntrack"},
		{"nsenter", "util-linux"},
		{"losetup", "mount"},
		{"mkfs.xfs", "xfsprogs"},
	} {
		if _, err := exec.LookPath(need.program); err != nil {
			return fmt.Errorf("%w; install the package %s, as deps.sh does", err, need.pkg)
		}
	}
	return nil
}
