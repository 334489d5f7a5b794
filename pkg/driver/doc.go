// Package driver is the CSI edge: the gRPC services of the plugin, and what
// kubelet and a cluster's operators ask beside them (registration, health,
// metrics).
//
// Its methods check a request, take the lock of the volume, and hand the work
// to the rooms below. They return the rooms' errors as they are; errors.go is
// the one place where an error becomes a gRPC code.
package driver
