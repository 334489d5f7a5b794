package oci

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Config says what a container is made of.
type Config struct {
	// Dir is where its root filesystem, its config.json and the state of its runtime
	// are kept: an empty directory, which the caller removes after Delete.
	Dir string
	// Prefix is what the container's name begins with.
	Prefix string
	// Devices are the devices that it gets beside /dev/null and the like.
	Devices []Device
	// Propagation says whether mounts on the host reach it: a value of
	// linux.rootfsPropagation in the OCI runtime specification, "rprivate" if
	// empty. They do with "rslave".
	Propagation string
	// Dev says what the container's /dev is.
	Dev Dev
	// Binds are directories of the host that it has at the same path.
	Binds []string
	// ReadOnlyRootfs has the container's root filesystem read-only.
	ReadOnlyRootfs bool
	// UserNamespace gives the container a user namespace of its own.
	UserNamespace bool
	// UID is the user that its first process runs as.
	UID int
	// Privileged lets the container open every device.
	Privileged bool
	// CgroupV2 has it started where only cgroup v2 is mounted: its device cgroup
	// is a BPF program then.
	CgroupV2 bool
	// Runtime is the program that runs it: "runc" if empty, or "crun".
	Runtime string
	// Name is the container's name; made from Prefix if empty.
	Name string
	// Hooks are programs that the runtime runs while it starts the container, by the
	// name of the hook in the OCI runtime specification, such as "createRuntime".
	Hooks map[string]Hook
	// Capabilities are those that it has besides CAP_MKNOD.
	Capabilities []string
}

// Hook is a program that the runtime runs: an entry of hooks in config.json.
type Hook struct {
	Path string   `json:"path"`
	Args []string `json:"args"`
}

// Dev is what the /dev of a container is.
type Dev int

const (
	// DevTmpfs is a tmpfs, as runtimes have it.
	DevTmpfs Dev = iota
	// DevInRootfs is a directory of the root filesystem.
	DevInRootfs
	// DevReadOnly is a tmpfs that is read-only once the container runs.
	DevReadOnly
	// DevOfHost is the host's own.
	DevOfHost
)

// RootID is root in a container that has a user namespace, as the host counts.
const RootID = 200000

// Container is a running container. It does nothing until it is told to.
type Container struct {
	// Name is the name of the container and of its cgroup. It is like no other.
	Name string
	// Rootfs is its root filesystem as the host sees it.
	Rootfs string
	dir    string
	v2     bool
	// runtime is the program that runs it.
	runtime string
}

// Start starts a container. It is the caller's to delete.
func Start(ctx context.Context, config Config) (*Container, error) {
	container := &Container{
		Name:    cmp.Or(config.Name, config.Prefix+"-"+strings.ToLower(rand.Text()[:8])),
		Rootfs:  filepath.Join(config.Dir, "rootfs"),
		dir:     config.Dir,
		v2:      config.CgroupV2,
		runtime: cmp.Or(config.Runtime, "runc"),
	}
	if err := makeRootfs(container.Rootfs); err != nil {
		return nil, fmt.Errorf("make a root filesystem: %w", err)
	}
	if err := writeSpec(config, container.Name); err != nil {
		return nil, fmt.Errorf("write config.json: %w", err)
	}
	// The processes of the container must not hold pipes of ours.
	log, err := os.Create(filepath.Join(config.Dir, "runc.log"))
	if err != nil {
		return nil, fmt.Errorf("make a log for runc: %w", err)
	}
	defer log.Close()
	run := container.runc(ctx, "run", "--detach", "--bundle", config.Dir, container.Name)
	run.Stdout, run.Stderr = log, log
	if err := run.Run(); err != nil {
		said, _ := os.ReadFile(log.Name()) // Only to say more.
		err = fmt.Errorf("runc run: %w: %s", err, strings.TrimSpace(string(said)))
		if undo := container.Delete(context.WithoutCancel(ctx)); undo != nil {
			err = fmt.Errorf("%w; and then %w", err, undo)
		}
		return nil, err
	}
	return container, nil
}

// Command prepares a command that runs in the container.
func (c *Container) Command(ctx context.Context, command ...string) *exec.Cmd {
	return c.runc(ctx, append([]string{"exec", c.Name}, command...)...)
}

// Exec runs a command of busybox in the container, such as "ls", "-l", "/dev",
// and returns what it printed. Where it fails, that is in the error as well.
func (c *Container) Exec(ctx context.Context, command ...string) (string, error) {
	output, err := c.Command(ctx, command...).CombinedOutput()
	said := strings.TrimSpace(string(output))
	if err != nil {
		return said, fmt.Errorf("%s in the container: %w: %s", strings.Join(command, " "), err, said)
	}
	return said, nil
}

// Delete kills what runs in the container and removes it with its cgroups. It
// may be repeated.
func (c *Container) Delete(ctx context.Context) error {
	output, err := c.runc(ctx, "delete", "--force", c.Name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("runc delete: %w: %s", err, strings.TrimSpace(string(output)))
	}
	// It says that it succeeded also where it could not remove something.
	if left := c.Cgroups(); len(left) > 0 {
		return fmt.Errorf("runc delete left %s: %s", strings.Join(left, ", "), strings.TrimSpace(string(output)))
	}
	return nil
}

// Cgroups lists the directories of the cgroups that the container has.
func (c *Container) Cgroups() []string {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		dirs, _ := filepath.Glob(pattern + c.Name) // The patterns are well-formed.
		found = append(found, dirs...)
	}
	return found
}

// onlyV2 runs a command where cgroup v2 is all that is mounted, as on current
// hosts: in a mount namespace of its own, so that the machine's stays as it is.
const onlyV2 = `umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"`

// PID returns the number of the container's first process, as the host counts.
func (c *Container) PID(ctx context.Context) (int, error) {
	output, err := c.runc(ctx, "state", c.Name).Output()
	if err != nil {
		return 0, fmt.Errorf("runc state: %w", err)
	}
	var state struct{ PID int }
	if err := json.Unmarshal(output, &state); err != nil {
		return 0, fmt.Errorf("runc state: %w", err)
	}
	return state.PID, nil
}

// runc prepares a command of runc, or of the runtime that stands in for it, with its
// state in the container's own directory and not among the machine's other containers.
func (c *Container) runc(ctx context.Context, args ...string) *exec.Cmd {
	state := filepath.Join(c.dir, "state")
	argv := append([]string{c.runtime, "--root", state}, args...)
	if c.v2 {
		argv = append([]string{"unshare", "--mount", "--propagation", "private", "sh", "-c", onlyV2, "sh"}, argv...)
	}
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// Ctrl-C is for our own process, which deletes the container then.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return command
}
