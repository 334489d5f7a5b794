package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/config"
	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/doctor"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
	"github.com/rawblock-csi/rawblock-csi/pkg/nodelock"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/disk"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/publish"
)

// nodeFlags say how to look at the node where no plugin answers.
type nodeFlags struct {
	offline    bool
	config     string
	kubeletDir string
	nodeID     string
}

// driverName is the name of the CSI driver.
const driverName = "csi.rawblock.dev"

// defaultConfig is where the plugin's configuration is in its container, and where it
// is looked for on a node.
const defaultConfig = "/etc/rawblock-csi/config.yaml"

func (n *nodeFlags) add(flags *pflag.FlagSet) {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	flags.BoolVar(&n.offline, "offline", false, "do not ask the plugin, but look at the media and the kernel")
	flags.StringVar(&n.config, "config", "", "without a plugin: its configuration file; empty: "+defaultConfig+" if it is there, else the plugin's defaults")
	flags.StringVar(&n.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "without a plugin: kubelet's --root-dir")
	flags.StringVar(&n.nodeID, "node-id", "", "without a plugin: name of the Kubernetes node; empty: the host's name")
	n.nodeID = host
	flags.Lookup("node-id").DefValue = ""
}

// The words for who has told what is shown.
const (
	fromPlugin = "plugin"
	fromNode   = "node"
)

// answering is who answers for the node.
type answering struct {
	admin.Node
	// source is fromPlugin or fromNode.
	source string
	close  func()
}

// ask returns who answers: the plugin, or else this program, which looks by itself and
// says so. The caller closes it.
func (t *tool) ask(ctx context.Context, client *admin.Client, stderr io.Writer) (answering, error) {
	if !t.offline {
		// Whatever it answers, it is there.
		if _, err := client.List(ctx); !errors.Is(err, admin.ErrUnreachable) {
			return answering{client, fromPlugin, func() {}}, nil
		}
	}
	path, settings, err := t.settings()
	if err != nil {
		return answering{}, err
	}
	how := "by the plugin's defaults, since there is no --config"
	if path != "" {
		how = "by the configuration " + path
	}
	why := "no plugin answers on " + t.socket
	if t.offline {
		why = "the plugin is not asked"
	}
	say(stderr, fmt.Errorf("%s; looking at the node itself, %s", why, how))
	return t.openNode(settings)
}

// settings returns the configuration of the node, and the file that it is from.
func (t *tool) settings() (path string, settings config.Config, err error) {
	path = t.config
	if path == "" {
		if _, err := os.Stat(defaultConfig); err != nil {
			return "", config.Default(), nil //nolint:nilerr // The plugin has its defaults too.
		}
		path = defaultConfig
	}
	settings, err = config.Load(path)
	return path, settings, err
}

// local answers for the node without a plugin.
type local struct{ *inspect.Inspector }

// openNode prepares to look at the node without a plugin. Nothing is changed, and
// nobody is kept from working on it.
func (t *tool) openNode(settings config.Config) (answering, error) {
	sysfs, state := blockdev.NewSysfs("/sys"), filepath.Dir(t.socket)
	options := inspect.Options{Node: t.nodeID, Driver: driverName, StateDir: state, KubeletDir: t.kubeletDir, Sysfs: sysfs}
	var closers []func()
	for _, setting := range settings.Pools {
		source, closer := lookAt(setting, sysfs)
		options.Pools = append(options.Pools, source)
		closers = append(closers, closer)
	}
	if runtime := dialRuntime(settings.Hotplug); runtime != nil {
		options.Runtime = runtime
		closers = append(closers, func() { runtime.Close() }) //nolint:errcheck,gosec // Nothing was sent that could be lost.
	}
	return answering{&local{inspect.New(options)}, fromNode, func() {
		for _, closer := range closers {
			closer()
		}
	}}, nil
}

// lookAt looks at a pool. What cannot be looked at is told with the rest.
func lookAt(setting config.Pool, sysfs blockdev.Sysfs) (inspect.Source, func()) {
	source, nothing := inspect.Source{Name: setting.Name, Kind: setting.Kind()}, func() {}
	switch {
	case setting.File != nil:
		source.Directory = setting.File.Directory
		found, err := file.Look(setting.Name, file.Options{
			Directory: setting.File.Directory, Capacity: setting.File.Capacity, Overcommit: setting.File.Overcommit,
		}, sysfs)
		if err != nil {
			source.Err = err
			return source, nothing
		}
		source.Volumes = found
		return source, found.Close
	case setting.Disk != nil:
		options := disk.Options{Match: disk.Selector(setting.Disk.Match), Layout: setting.Disk.Layout, Wipe: setting.Disk.Wipe}
		for _, exclude := range setting.Disk.Exclude {
			options.Exclude = append(options.Exclude, disk.Selector(exclude))
		}
		found, err := disk.Look(setting.Name, options, sysfs)
		if err != nil {
			source.Err = err
			return source, nothing
		}
		source.Volumes = found
	case setting.LVM != nil:
		found, err := lvm.Look(setting.Name, lvm.Options{
			VolumeGroup: setting.LVM.VolumeGroup, UUID: setting.LVM.VGUUID, ThinPool: setting.LVM.ThinPool, Overcommit: setting.LVM.Overcommit, Wipe: setting.LVM.Wipe,
		}, program.New(program.HostNamespace), sysfs)
		if err != nil {
			source.Err = err
			return source, nothing
		}
		source.Volumes = found
	}
	return source, nothing
}

// dialRuntime returns a client of the container runtime, nil where none is found.
func dialRuntime(settings config.Hotplug) *cri.Client {
	socket := settings.CRISocket
	if socket == "" {
		var err error
		if socket, err = cri.FindSocket("/"); err != nil {
			return nil
		}
	}
	client, err := cri.Dial(socket)
	if err != nil {
		return nil
	}
	return client
}

// Findings returns what is left over or wrong.
func (l *local) Findings(ctx context.Context) ([]doctor.Finding, error) {
	return doctor.New(doctor.Options{Inspector: l.Inspector}).Findings(ctx)
}

// lockWait is how long a plugin that starts or ends is waited for.
const lockWait = 2 * time.Second

// Fix mends a finding, and keeps the plugin from starting meanwhile.
func (l *local) Fix(ctx context.Context, id string) (doctor.Finding, error) {
	waiting, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	lock, err := nodelock.Take(waiting, l.StateDir)
	if err != nil {
		return doctor.Finding{}, err
	}
	defer lock.Release()
	publisher, err := publish.New(l.StateDir, l.Sysfs)
	if err != nil {
		return doctor.Finding{}, err
	}
	return doctor.New(doctor.Options{Inspector: l.Inspector, Publisher: publisher, Inflight: &inflight.Names{}}).Fix(ctx, id)
}

// Release needs the plugin, which wipes what the volume leaves.
func (l *local) Release(context.Context, string) error {
	return fmt.Errorf("%w: a volume is released by the plugin, which wipes what it leaves; start it first", admin.ErrUnreachable)
}
