package main

import (
	"context"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/config"
	"github.com/rawblock-csi/rawblock-csi/pkg/doctor"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/nodelock"
)

// operator is what the node's administrator is shown, and what is mended for them.
type operator struct {
	*inspect.Inspector
	*doctor.Doctor
}

func newOperator(flags flags, settings []config.Pool, attachments *attachments, options driver.Options) operator {
	wanted := inspect.Options{
		Node: options.NodeID, Driver: driver.Name, StateDir: flags.stateDir, KubeletDir: options.KubeletDir,
		Sysfs: options.Sysfs, Monitor: options.Monitor,
	}
	for _, setting := range settings {
		source := inspect.Source{Name: setting.Name, Kind: setting.Kind(), Volumes: options.Pools[setting.Name]}
		if setting.File != nil {
			source.Directory = setting.File.Directory
		}
		wanted.Pools = append(wanted.Pools, source)
	}
	if attachments.runtime != nil {
		wanted.Runtime = attachments.runtime
	}
	inspector := inspect.New(wanted)
	return operator{inspector, doctor.New(doctor.Options{
		Inspector: inspector, Publisher: options.Publisher, Inflight: options.Inflight, Attachments: attachments,
	})}
}

// lockWait is how long a plugin that ends, or an administrator's repair, is waited for.
const lockWait = 10 * time.Second

// lockNode keeps other plugins, and rawblockctl where it does something itself, from
// working on this node.
func lockNode(ctx context.Context, stateDir string) (*nodelock.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	return nodelock.Take(ctx, stateDir)
}
