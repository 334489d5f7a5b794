// Package lvm speaks to the lvm program of the host (lvm(8)): it reports what a
// volume group has, and changes logical volumes. It knows nothing of pools.
//
// What exists is asked for with one command, so that its parts fit each other. A
// change names the logical volume by its UUID where the command can be told so: a
// name may have become another's. All names are checked before they are used, so
// that none can be an option or a path. The settings of the host (lvm.conf,
// locking, udev) hold, but for those that change the form of a report, and for the
// devices: which ones lvm looks at the caller decides, as tenants can write to some.
package lvm
