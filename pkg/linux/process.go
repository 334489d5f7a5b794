package linux

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Process is a process that is held by a descriptor (pidfd_open(2)): its number
// may become another process's, the descriptor stays its own.
type Process struct {
	fd  int
	pid int
}

// OpenProcess holds the process with the number, which must be that of a thread
// group. It fails with ESRCH where there is none.
func OpenProcess(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &Process{fd: fd, pid: pid}, nil
}

// PID is the number of the process. It is another's once the process has ended
// and was waited for.
func (p *Process) PID() int { return p.pid }

// Fd is the number of the descriptor.
func (p *Process) Fd() uintptr { return uintptr(p.fd) }

// Name says which process it is, for messages.
func (p *Process) Name() string { return "process " + strconv.Itoa(p.pid) }

// Ended reports whether the process has ended, all of its threads included. What
// was read of /proc/PID before a call that returns false was its own. No other
// call tells: until it is waited for, a dead process still takes a signal, and
// its root can be reached (poll(2) in pidfd_open(2)).
func (p *Process) Ended() (bool, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}} //nolint:gosec // Descriptors are small.
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, os.NewSyscallError("poll", err)
	}
}

// Close lets the process go.
func (p *Process) Close() {
	unix.Close(p.fd) //nolint:errcheck,gosec // Linux closes it in any case (close(2)).
	p.fd = -1
}

// SharesDescriptors reports whether a thread is known to share the descriptors of its
// process (KCMP_FILES of kcmp(2)).
func SharesDescriptors(pid, thread int) bool {
	shares, err := compareFiles(pid, thread)
	return err == nil && shares
}

// CheckInspectable returns EPERM where this process is known not to be allowed to look into
// another, which has more capabilities (ptrace(2), access mode checking). It waits while that
// one executes a program and for that waits for a filesystem (exec_update_lock in the kernel's
// kernel/kcmp.c).
func CheckInspectable(pid int) error {
	_, err := compareFiles(pid, pid)
	if !errors.Is(err, unix.EPERM) {
		return nil //nolint:nilerr // Whether it is there, /proc tells: that can be another namespace's.
	}
	if _, own := compareFiles(os.Getpid(), os.Getpid()); own != nil {
		return nil //nolint:nilerr // seccomp(2) forbids kcmp(2) altogether.
	}
	return err
}

func compareFiles(pid, other int) (same bool, err error) {
	const kcmpFiles = 2 // linux/kcmp.h
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(other), kcmpFiles, 0, 0, 0)
	if errno != 0 {
		return false, os.NewSyscallError("kcmp", errno)
	}
	return order == 0, nil
}
