package main

import (
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/rawblock-csi/rawblock-csi/pkg/config"
	"github.com/rawblock-csi/rawblock-csi/pkg/cri"
	"github.com/rawblock-csi/rawblock-csi/pkg/devcgroup"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/inflight"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// attachments are the devices that running containers are given, and what that
// takes.
type attachments struct {
	*hotplug.Manager
	// runtime is the container runtime, nil where there is none.
	runtime *cri.Client
}

// openAttachments prepares hot attach, and has the driver ask it before a volume is
// unpublished or unstaged.
func openAttachments(settings config.Hotplug, stateDir string, options *driver.Options) (*attachments, error) {
	opened := &attachments{}
	hierarchies, err := devcgroup.FindHierarchies(options.NodeID)
	if err != nil {
		return nil, fmt.Errorf("prepare hot attach: %w", err)
	}
	options.Inflight = &inflight.Names{}
	wanted := hotplug.Options{
		StateDir:       stateDir,
		Volumes:        options.Publisher,
		Inflight:       options.Inflight,
		AttachmentPods: settings.AttachmentPods,
		Hierarchies:    hierarchies,
		Sysfs:          options.Sysfs,
	}
	if opened.runtime, err = dialRuntime(settings); err != nil {
		return nil, err
	}
	if opened.runtime != nil {
		wanted.Runtime = opened.runtime
	}
	if opened.Manager, err = hotplug.New(wanted); err != nil {
		opened.close()
		return nil, err
	}
	options.Attachments = opened.Manager
	options.Collectors = append(options.Collectors, opened.Manager)
	return opened, nil
}

// dialRuntime returns a client of the container runtime, nil where no socket is
// configured and none is found: containers are then named by process or ID.
func dialRuntime(settings config.Hotplug) (*cri.Client, error) {
	if settings.CRISocket != "" {
		return cri.Dial(settings.CRISocket)
	}
	socket, err := cri.FindSocket("/")
	if errors.Is(err, volume.ErrNotFound) && !settings.AttachmentPods {
		return nil, nil //nolint:nilnil // No runtime is an answer.
	}
	if err != nil {
		return nil, fmt.Errorf("hotplug.attachmentPods: %w; set hotplug.criSocket", err)
	}
	return cri.Dial(socket)
}

func (a *attachments) close() {
	if a.Manager != nil {
		a.Manager.Close() //nolint:staticcheck // By itself it would look like the whole.
	}
	if a.runtime != nil {
		if err := a.runtime.Close(); err != nil {
			klog.Background().Error(err, "Cannot close the connection to the container runtime")
		}
	}
}
