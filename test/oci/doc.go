// Package oci starts containers as the runtime below Kubernetes does: it writes
// a bundle (config.json and a root filesystem) and has runc run it. The root
// filesystem holds busybox and nothing else. It is the part of a node that comes
// after the plugin, for the tests and the demo; it does not import testing.
package oci
