// Package blockdev knows one block device: as an open handle, its number, size
// and identity, whether the host uses it, and a read-only view of it.
//
// A Device is opened once and verified by that descriptor. As long as it is
// open the kernel does not give its number to another device, so what was
// checked is what is used. Facts are read from sysfs by device number, never by
// name; the root of sysfs is injected so that tests can describe hardware that
// the machine does not have. A fact that the hardware does not state
// (ErrNoFact) and one that cannot be read are different errors.
//
// Rules: no mounts, no volumes, no policy. System calls are those of pkg/linux.
package blockdev
