// Package process reads the host's processes from /proc: which container a
// process is in, which process a container began with, and who has a device
// open.
//
// Process numbers are used again. What is read here is true of a process only if
// the caller holds it (linux.OpenProcess) and sees afterwards that it has not
// ended. A process that is not there is volume.ErrNotFound. The plugin must see
// the host's processes: in Kubernetes, hostPID.
package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Table is the table of processes. Its methods may be called concurrently.
type Table struct {
	root string
	// peeks is for what asks no server, limit for what may: who fills the one does not
	// fill the other.
	peeks, limit *linux.Limit
}

// How long a file may take to answer, and how many that do not are waited for at once.
const (
	wait     = 2 * time.Second
	maxStuck = 32
)

// New returns the table that is mounted at root, usually /proc.
func New(root string) Table {
	return Table{root, linux.NewLimit(wait, maxStuck), linux.NewLimit(wait, maxStuck)}
}

// read reads a file of a process.
func (t Table) read(pid int, name string) (string, error) {
	text, err := os.ReadFile(t.path(pid, name))
	if err != nil {
		return "", wrap(pid, err)
	}
	return string(text), nil
}

func (t Table) path(pid int, name string) string {
	return filepath.Join(t.root, strconv.Itoa(pid), name)
}

func wrap(pid int, err error) error {
	if hasEnded(err) {
		return fmt.Errorf("%w: there is no process %d", volume.ErrNotFound, pid)
	}
	return fmt.Errorf("look at process %d: %w", pid, err)
}

// hasEnded reports whether an error says that a process has ended while it was
// looked at.
func hasEnded(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// all returns the numbers of all processes.
func (t Table) all() ([]int, error) {
	entries, err := os.ReadDir(t.root)
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	var all []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all, nil
}

// StartTime returns when the process was started, in clock ticks since boot. With
// the number it names a process of this boot.
func (t Table) StartTime(pid int) (uint64, error) {
	stat, err := t.stat(pid)
	return stat.start, err
}

// stat is what /proc/PID/stat tells.
type stat struct {
	parent int
	start  uint64
}

func (t Table) stat(pid int) (stat, error) {
	text, err := t.read(pid, "stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(text)
}

// parseStat reads /proc/PID/stat (proc_pid_stat(5)), whose second field is in
// parentheses and may hold anything, parentheses too.
func parseStat(text string) (stat, error) {
	begin, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if begin < 0 || end < begin {
		return stat{}, fmt.Errorf("malformed stat of a process: %q", text)
	}
	// The first of these is the third of the page.
	fields := strings.Fields(text[end+1:])
	const parent, start = 4 - 3, 22 - 3
	if len(fields) <= start {
		return stat{}, fmt.Errorf("malformed stat of a process: %q", text)
	}
	var found stat
	var err error
	if found.parent, err = strconv.Atoi(fields[parent]); err != nil {
		return stat{}, fmt.Errorf("parent in the stat of a process: %w", err)
	}
	if found.start, err = strconv.ParseUint(fields[start], 10, 64); err != nil {
		return stat{}, fmt.Errorf("start time in the stat of a process: %w", err)
	}
	return found, nil
}

// ContainerOf returns the ID of the container that the process is in, "" where it
// is in none that has one.
func (t Table) ContainerOf(pid int) (string, error) {
	text, err := t.read(pid, "cgroup")
	if err != nil {
		return "", err
	}
	return containerID(text), nil
}

// idForm is an ID as all runtimes below Kubernetes, Docker and podman make them,
// as they stand in the name of a cgroup: alone, as in cri-containerd-ID.scope, or as
// in POD.slice:cri-containerd:ID, where kubelet and the runtime disagree.
var idForm = regexp.MustCompile(`^(.*[-:])?([0-9a-f]{64})(\.scope)?$`)

// ofMonitor ends what stands before the ID in the cgroup of a process that watches the
// container from outside: that of podman and CRI-O.
const ofMonitor = "conmon-"

// containerID finds the ID in /proc/PID/cgroup (cgroups(7)): that of the innermost
// container.
func containerID(text string) string {
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		for path := fields[2]; path != "/" && path != "." && path != ""; path = filepath.Dir(path) {
			found := idForm.FindStringSubmatch(filepath.Base(path))
			if found != nil && !strings.HasSuffix(found[1], ofMonitor) {
				return found[2]
			}
		}
	}
	return ""
}

// minPrefix is how much of an ID must be given: what docker ps prints.
const minPrefix = 12

// Init returns the first process of the container with the ID, of which the first
// 12 characters or more may be given. Errors: volume.ErrNotFound; volume.ErrInvalid
// where the ID is too short, or several containers have it.
func (t Table) Init(id string) (int, error) {
	if len(id) < minPrefix || strings.Trim(id, "0123456789abcdef") != "" {
		return 0, fmt.Errorf("%w: the container ID is %q; expected at least %d of its 64 hexadecimal digits", volume.ErrInvalid, id, minPrefix)
	}
	var full string
	pid, found, err := t.first(func(pid int) (bool, error) {
		of, err := t.ContainerOf(pid)
		if err != nil || !strings.HasPrefix(of, id) {
			return false, err
		}
		if full != "" && full != of {
			return false, fmt.Errorf("%w: the container ID %s is that of %s and %s; give more of it", volume.ErrInvalid, id, full, of)
		}
		full = of
		return true, nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: no container with the ID %s runs on this node", volume.ErrNotFound, id)
	}
	return pid, err
}

// InitOf returns the first process of the container that the process is in. Where
// the container has no ID, it is what has the process's cgroups and mount
// namespace. Errors: volume.ErrNotFound.
func (t Table) InitOf(pid int) (int, error) {
	id, err := t.ContainerOf(pid)
	if err != nil {
		return 0, err
	}
	if id != "" {
		return t.Init(id)
	}
	cgroups, err := t.read(pid, "cgroup")
	if err != nil {
		return 0, err
	}
	mounts, err := t.namespace(pid, "mnt")
	if err != nil {
		return 0, err
	}
	first, found, err := t.first(func(other int) (bool, error) {
		its, err := t.read(other, "cgroup")
		if err != nil || its != cgroups {
			return false, err
		}
		namespace, err := t.namespace(other, "mnt")
		return namespace == mounts, err
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: there is no process %d", volume.ErrNotFound, pid)
	}
	return first, err
}

// first returns the process that was started first of those of which is says true.
func (t Table) first(is func(pid int) (bool, error)) (pid int, found bool, err error) {
	all, err := t.all()
	if err != nil {
		return 0, false, err
	}
	var start uint64
	for _, other := range all {
		ok, err := is(other)
		if err == nil && ok {
			var its uint64
			its, err = t.StartTime(other)
			// Processes of one tick have ascending numbers, unless those began anew.
			if err == nil && (!found || its < start) {
				pid, start, found = other, its, true
			}
		}
		if err != nil && !errors.Is(err, volume.ErrNotFound) {
			return 0, false, err
		}
	}
	return pid, found, nil
}

// namespace names a namespace of a process (namespaces(7)).
func (t Table) namespace(pid int, kind string) (string, error) {
	name, err := os.Readlink(t.path(pid, "ns/"+kind))
	if err != nil {
		return "", wrap(pid, err)
	}
	return name, nil
}

// SharesMounts reports whether the process has the mount namespace of the host's
// first process, or of the plugin. Where the first process has more capabilities
// than the plugin, which then is in no container itself, only its own counts.
func (t Table) SharesMounts(pid int) (bool, error) {
	its, err := t.namespace(pid, "mnt")
	if err != nil {
		return false, err
	}
	for _, other := range []int{1, os.Getpid()} {
		namespace, err := t.namespace(other, "mnt")
		if errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return false, err
		}
		if namespace == its {
			return true, nil
		}
	}
	return false, nil
}

// Owner returns the effective user and group of the process, as the host counts.
func (t Table) Owner(pid int) (uid, gid uint32, err error) {
	text, err := t.read(pid, "status")
	if err != nil {
		return 0, 0, err
	}
	if uid, err = parseOwner(text, "Uid:"); err != nil {
		return 0, 0, err
	}
	gid, err = parseOwner(text, "Gid:")
	return uid, gid, err
}

// parseOwner reads the effective ID of a line of /proc/PID/status
// (proc_pid_status(5)): real, effective, saved, filesystem.
func parseOwner(text, key string) (uint32, error) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 5 && fields[0] == key {
			id, err := strconv.ParseUint(fields[2], 10, 32)
			if err != nil {
				return 0, fmt.Errorf("owner of a process: %w", err)
			}
			return uint32(id), nil
		}
	}
	return 0, fmt.Errorf("owner of a process: its status has no %s", key)
}

// Root returns who is root in the user namespace of the process, as the host
// counts, and whether that is another one than the host's. Errors:
// volume.ErrPrecondition where nobody is root there.
func (t Table) Root(pid int) (uid, gid uint32, foreign bool, err error) {
	its, err := t.namespace(pid, "user")
	if err != nil {
		return 0, 0, false, err
	}
	own, err := t.namespace(os.Getpid(), "user")
	if err != nil {
		return 0, 0, false, err
	}
	if its == own {
		return 0, 0, false, nil
	}
	for name, id := range map[string]*uint32{"uid_map": &uid, "gid_map": &gid} {
		text, err := t.read(pid, name)
		if err != nil {
			return 0, 0, false, err
		}
		if *id, err = parseRoot(text); err != nil {
			return 0, 0, false, fmt.Errorf("%s of process %d: %w", name, pid, err)
		}
	}
	return uid, gid, true, nil
}

// parseRoot returns what 0 is mapped to by /proc/PID/uid_map
// (user_namespaces(7)): ranges of inside, outside, length.
func parseRoot(text string) (uint32, error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			return 0, fmt.Errorf("malformed line %q", line)
		}
		if fields[0] != "0" {
			continue
		}
		id, err := strconv.ParseUint(fields[1], 10, 32)
		if err != nil {
			return 0, fmt.Errorf("malformed line %q: %w", line, err)
		}
		return uint32(id), nil
	}
	return 0, fmt.Errorf("%w: nobody is root in the container's user namespace", volume.ErrPrecondition)
}
