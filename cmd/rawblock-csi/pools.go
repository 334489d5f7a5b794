package main

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/config"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
)

// pools are the pools of a node, by their names.
type pools map[string]driver.Pool

// openPools opens what the configuration describes: the one place that knows all
// kinds of pools.
func openPools(ctx context.Context, settings []config.Pool, sysfs blockdev.Sysfs) (pools, error) {
	opened := pools{}
	for _, setting := range settings {
		pool, err := openPool(ctx, setting, sysfs)
		if err != nil {
			opened.close()
			return nil, fmt.Errorf("open pool %s: %w", setting.Name, err)
		}
		opened[setting.Name] = pool
	}
	return opened, nil
}

func openPool(ctx context.Context, setting config.Pool, sysfs blockdev.Sysfs) (driver.Pool, error) {
	switch {
	case setting.Disk != nil:
		return disk.New(ctx, setting.Name, diskOptions(*setting.Disk), sysfs)
	case setting.LVM != nil:
		return openLVM(ctx, setting.Name, *setting.LVM, sysfs)
	}
	return file.New(ctx, setting.Name, file.Options{
		Directory:  setting.File.Directory,
		Capacity:   setting.File.Capacity,
		Overcommit: setting.File.Overcommit,
	}, sysfs)
}

func diskOptions(setting config.DiskPool) disk.Options {
	options := disk.Options{Match: disk.Selector(setting.Match), Layout: setting.Layout, Wipe: setting.Wipe}
	for _, exclude := range setting.Exclude {
		options.Exclude = append(options.Exclude, disk.Selector(exclude))
	}
	return options
}

func openLVM(ctx context.Context, name string, setting config.LVMPool, sysfs blockdev.Sysfs) (driver.Pool, error) {
	options := lvm.Options{VolumeGroup: setting.VolumeGroup, UUID: setting.VGUUID, ThinPool: setting.ThinPool, Overcommit: setting.Overcommit, Wipe: setting.Wipe}
	host := program.New(program.HostNamespace)
	if setting.ThinPool != "" {
		return lvm.NewThin(ctx, name, options, host, sysfs)
	}
	return lvm.New(ctx, name, options, host, sysfs)
}

// close ends what pools do in the background. What it leaves undone is gone on
// with at the next start.
func (p pools) close() {
	for _, pool := range p {
		if closer, ok := pool.(interface{ Close() }); ok {
			closer.Close()
		}
	}
}

// collectors are those pools that have metrics.
func (p pools) collectors() []prometheus.Collector {
	var found []prometheus.Collector
	for _, pool := range p {
		if collector, ok := pool.(prometheus.Collector); ok {
			found = append(found, collector)
		}
	}
	return found
}
