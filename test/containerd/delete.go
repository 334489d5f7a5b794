package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Delete removes the pods and ends the daemon. Whatever is left of them after
// that, such as when the daemon was killed, is killed, unmounted and removed.
func (r *Runtime) Delete(ctx context.Context) error {
	var failed []error
	if r.command != nil {
		failed = append(failed, r.deletePods(ctx), r.end(syscall.SIGTERM))
	}
	sockets := r.shimSockets()
	failed = append(failed,
		r.retry(ctx, r.killAll),
		r.retry(ctx, r.removeCgroups),
		r.unmountAll(),
		r.conn.Close())
	for _, socket := range sockets {
		if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	for _, dir := range r.made {
		os.Remove(dir) // Where others use it by now, it stays.
	}
	return errors.Join(failed...)
}

func (r *Runtime) deletePods(ctx context.Context) error {
	response, err := r.pods.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list the pods: %w", err)
	}
	var failed []error
	for _, found := range response.GetItems() {
		metadata := found.GetMetadata()
		sandbox := Sandbox{Pod: Pod{Namespace: metadata.GetNamespace(), Name: metadata.GetName()}, ID: found.GetId(), runtime: r}
		failed = append(failed, sandbox.Delete(ctx))
	}
	return errors.Join(failed...)
}

// errLeft says that something is still there.
var errLeft = errors.New("it does not go")

// retry does something until nothing is left: a process that was killed takes a
// moment to end.
func (r *Runtime) retry(ctx context.Context, do func() error) error {
	for {
		err := do()
		if !errors.Is(err, errLeft) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// shimDirs are where shims have their sockets, the inner one first, wherever
// containerd has its directories (SocketAddress in its runtime/v2/shim/util_unix.go).
var shimDirs = []string{"/run/containerd/s", "/run/containerd"}

// shimSocket is the path of the socket of a shim.
var shimSocket = regexp.MustCompile(regexp.QuoteMeta(shimDirs[0]) + "/[0-9a-f]+")

// shimSockets returns the sockets of the shims that still have one, as it stands in
// the directory of each: in a file that is named address, since containerd 2
// bootstrap.json.
func (r *Runtime) shimSockets() []string {
	files, _ := filepath.Glob(r.path("state/io.containerd.runtime.v2.task/*/*/*")) // The pattern is well-formed.
	var sockets []string
	for _, file := range files {
		if name := filepath.Base(file); name == "address" || name == "bootstrap.json" {
			text, _ := os.ReadFile(file) // It may be gone with its shim.
			sockets = append(sockets, shimSocket.FindAllString(string(text), -1)...)
		}
	}
	return sockets
}

// killAll kills the shims and what runs in the cgroups.
func (r *Runtime) killAll() error {
	pids, err := r.processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	if len(pids) > 0 {
		return fmt.Errorf("kill the processes %v: %w", pids, errLeft)
	}
	return nil
}

// processes returns the shims, which have the path of our socket among their
// arguments, and the processes of the containers. Of one that has ended, but whose
// parent has not noticed yet, there are neither arguments nor a cgroup like ours.
func (r *Runtime) processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process that has ended meanwhile cannot be read.
		arguments, _ := os.ReadFile("/proc/" + entry.Name() + "/cmdline")
		cgroups, _ := os.ReadFile("/proc/" + entry.Name() + "/cgroup")
		if bytes.Contains(arguments, []byte("\x00"+r.Socket+"\x00")) || len(arguments) > 0 && bytes.Contains(cgroups, []byte(":/"+r.cgroup+"/")) {
			found = append(found, pid)
		}
	}
	return found, nil
}

// removeCgroups removes the cgroups of the pods, which kubelet does on a node.
func (r *Runtime) removeCgroups() error {
	for _, root := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		tops, _ := filepath.Glob(root + r.cgroup) // The pattern is well-formed.
		for _, top := range tops {
			var dirs []string
			err := filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.IsDir() {
					dirs = append(dirs, path)
				}
				return err
			})
			for _, dir := range slices.Backward(dirs) {
				err = errors.Join(err, syscall.Rmdir(dir))
			}
			if err != nil {
				return fmt.Errorf("remove the cgroups of the pods: %w: %w", errLeft, err)
			}
		}
	}
	return nil
}

// unmountAll unmounts what is mounted in our directory, lazily.
func (r *Runtime) unmountAll() error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, line := range slices.Backward(strings.Split(strings.TrimSpace(string(table)), "\n")) {
		point := strings.Fields(line)[4]
		if !strings.HasPrefix(point, r.dir+"/") {
			continue
		}
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}
