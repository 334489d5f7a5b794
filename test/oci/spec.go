package oci

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// Device is a device for a container: an entry of linux.devices in config.json.
type Device struct {
	// Path is where its node is made in the container.
	Path string
	// Number is all that the kernel needs to know of it.
	Number linux.DeviceNumber
	// Mode is the permissions of the node.
	Mode os.FileMode
	// Access is what the container may do with it, "rwm" if empty.
	Access string
}

// DeviceAt takes over a device from the host, as a runtime does it for an entry
// of volumeDevices: it looks only at the type and the number of the node that is
// found at hostPath, the path where a volume is published. What is mounted there
// never reaches the container.
func DeviceAt(hostPath, path string) (Device, error) {
	info, err := os.Stat(hostPath)
	if err != nil {
		return Device{}, fmt.Errorf("hand over a device: %w", err)
	}
	node, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Type() != os.ModeDevice {
		return Device{}, fmt.Errorf("hand over a device: %s is not a block device", hostPath)
	}
	number := linux.DeviceNumber{Major: unix.Major(node.Rdev), Minor: unix.Minor(node.Rdev)}
	return Device{Path: path, Number: number, Mode: info.Mode().Perm()}, nil
}

// Node is an entry of linux.devices: the runtime makes this node in the container.
type Node struct {
	Path     string      `json:"path"`
	Type     string      `json:"type"`
	Major    uint32      `json:"major"`
	Minor    uint32      `json:"minor"`
	FileMode os.FileMode `json:"fileMode"`
	UID      uint32      `json:"uid"`
	GID      uint32      `json:"gid"`
}

// Rule is an entry of linux.resources.devices: the kernel lets the container
// open this device, or with Allow false and no numbers, none.
type Rule struct {
	Allow  bool    `json:"allow"`
	Type   string  `json:"type,omitempty"`
	Major  *uint32 `json:"major,omitempty"`
	Minor  *uint32 `json:"minor,omitempty"`
	Access string  `json:"access"`
}

// Node is the device's node, which belongs to root.
func (d Device) Node() Node {
	return Node{Path: d.Path, Type: "b", Major: d.Number.Major, Minor: d.Number.Minor, FileMode: d.Mode}
}

// Rule is the rule that lets the container use the device.
func (d Device) Rule() Rule {
	return Rule{Allow: true, Type: "b", Major: &d.Number.Major, Minor: &d.Number.Minor, Access: cmp.Or(d.Access, "rwm")}
}

// writeSpec writes the config.json of a container
// (https://github.com/opencontainers/runtime-spec, version 1.0.2).
func writeSpec(config Config, name string) error {
	text, err := json.MarshalIndent(spec(config, name), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(config.Dir, "config.json"), text, 0o600)
}

func spec(config Config, name string) any {
	var nodes []Node
	rules := []Rule{{Allow: false, Access: "rwm"}}
	for _, device := range config.Devices {
		nodes, rules = append(nodes, device.Node()), append(rules, device.Rule())
	}
	if config.Privileged {
		rules = []Rule{{Allow: true, Access: "rwm"}}
	}
	propagation := config.Propagation
	if propagation == "" {
		propagation = "rprivate"
	}
	// Among the capabilities that runtimes give to every container, the one that
	// has to do with devices.
	capabilities := append([]string{"CAP_MKNOD"}, config.Capabilities...)
	hooks := map[string][]Hook{}
	for name, hook := range config.Hooks {
		hooks[name] = []Hook{hook}
	}
	linux := object{
		"namespaces":        namespaces(config),
		"rootfsPropagation": propagation,
		"cgroupsPath":       "/" + name,
		"devices":           nodes,
		"resources":         object{"devices": rules},
	}
	if config.UserNamespace {
		mapping := []object{{"containerID": 0, "hostID": RootID, "size": 65536}}
		linux["uidMappings"], linux["gidMappings"] = mapping, mapping
	}
	return object{
		"ociVersion": "1.0.2",
		"hostname":   name,
		"root":       object{"path": "rootfs", "readonly": config.ReadOnlyRootfs},
		"process": object{
			"args": []string{"sleep", "infinity"},
			"cwd":  "/",
			"env":  []string{"PATH=/bin"},
			"user": object{"uid": config.UID, "gid": config.UID},
			"capabilities": object{
				"bounding": capabilities, "effective": capabilities, "permitted": capabilities,
			},
		},
		"mounts": mounts(config),
		"linux":  linux,
		"hooks":  hooks,
	}
}

type object map[string]any

func namespaces(config Config) []object {
	names := []string{"mount", "pid", "ipc", "uts", "network"}
	if config.UserNamespace {
		names = append(names, "user")
	}
	var namespaces []object
	for _, name := range names {
		namespaces = append(namespaces, object{"type": name})
	}
	return namespaces
}

func mounts(config Config) []object {
	found := []object{{"destination": "/proc", "type": "proc", "source": "proc"}}
	options := []string{"nosuid", "strictatime", "mode=755", "size=65536k"}
	switch config.Dev {
	case DevInRootfs:
		return found
	case DevReadOnly:
		// The runtime makes its nodes first.
		options = append(options, "ro")
	case DevOfHost:
		return append(found, object{"destination": "/dev", "type": "bind", "source": "/dev", "options": []string{"rbind"}})
	case DevTmpfs:
	}
	found = append(found, object{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": options})
	for _, path := range config.Binds {
		found = append(found, object{"destination": path, "type": "bind", "source": path, "options": []string{"bind"}})
	}
	return found
}
