// Package containerd starts a container runtime as kubelet has it below: a
// containerd of its own, with directories and a socket of its own, and pods in it that
// are made through its CRI socket with the labels that kubelet gives them. The only
// image holds busybox and nothing else, and comes from no registry. It is for the
// tests; it does not import testing.
package containerd
