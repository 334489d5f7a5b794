// Package hotplug gives a block device to a container that is already running, and
// takes it away again, without restarting the container.
//
// Rules of this room. What is about to be done is recorded before it is done, so that
// it can be undone by whoever comes after; Reconcile makes true what is recorded, at
// any time. The node comes last when a device is given, and the access goes first
// when it is taken. A container is held by its first process (pidfd), and whether it
// runs still is asked after each thing that was done to it; a device is held open,
// so that its number stays its own. What lies in a container is never believed. A
// device is given up only when nobody has it open.
//
// The files: attach.go and detach.go are the two acts, claim.go who may have a device,
// place.go the node, find.go the container, pods.go the pods that ask, reconcile.go
// what becomes of all of them, records.go what is written down.
package hotplug
