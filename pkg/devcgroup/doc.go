// Package devcgroup opens the device cgroup of a running container for one block
// device, and closes it again, exactly as it was.
//
// The device cgroup is what keeps a container from the devices that are not its
// own: not the node, which a container with CAP_MKNOD makes by itself. In cgroup v1
// it is a list of rules, in v2 one or more BPF programs, all of which must agree,
// those of the cgroups above included. A hybrid host may have both for one
// container, and then both must agree.
//
// Rules of this room. The rules of the container's own are neither understood nor
// rebuilt: a grant is put in front of them, and taken away from there. What was
// granted is written down before, as an extended attribute of the cgroup's directory,
// which the kernel keeps for as long as the cgroup is there: so it is known what is
// ours, whatever else was lost. Cgroups above the container's are never touched,
// since they are others' too.
//
// The cgroup of a unit of systemd is made by what the unit says, again and again: the
// unit is told as well (DeviceAllow=, until the machine is restarted), and what it
// said before is written down. A program of systemd's is never changed behind its back.
//
// What is not seen. In cgroup v1, a cgroup that allows everything but some devices
// says that it allows everything (devcgroup_seq_show in the kernel's
// security/device_cgroup.c), and systemd is not told. In cgroup v2, programs are
// extended on amd64 and arm64 only, and not those that call functions, use maps, or
// were attached by a link.
package devcgroup
