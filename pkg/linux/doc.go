// Package linux is the only room that makes raw system calls. Each function is
// one call or ioctl of the kernel, or the shortest chain of them that has a
// meaning of its own, and takes descriptors, never paths that could lead
// elsewhere the next time.
//
// Errors are *os.SyscallError or *os.PathError and unwrap to the kernel's
// errno; nothing here knows what a volume is. All functions may be called
// concurrently. Descriptors are opened O_CLOEXEC.
package linux
