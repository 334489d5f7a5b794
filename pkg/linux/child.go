package linux

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// InNamespaces runs f on a thread of its own in the namespaces (setns(2)), which
// are those of descriptors of /proc/PID/ns/mnt, ipc, uts or net. A program that f
// starts is in them too. Paths are those of the mount namespace from its root.
func InNamespaces(namespaces []Descriptor, f func() error) error {
	return onOwnThread(func() error {
		// The root and the working directory, which setns changes, are shared by
		// all threads until then.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		for _, namespace := range namespaces {
			if err := unix.Setns(int(namespace.Fd()), 0); err != nil {
				return &os.PathError{Op: "setns", Path: namespace.Name(), Err: err}
			}
		}
		return f()
	})
}

// AwaitExit waits until a child of this process has ended, and leaves it to be
// waited for: until then its number, and that of its process group, are its own.
func AwaitExit(pid int) error {
	_, err := ignoringEINTR(func() (int, error) {
		return 0, unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	})
	return os.NewSyscallError("waitid", err)
}

// SignalGroup sends a signal to each process of a process group. One that has
// none is no error.
func SignalGroup(group int, signal syscall.Signal) error {
	if err := unix.Kill(-group, signal); err != nil && err != unix.ESRCH { //nolint:errorlint // A plain number.
		return os.NewSyscallError("kill", err)
	}
	return nil
}
