// Package hotplug gives a block device to a container that is already running,
// and takes it away again.
package hotplug
