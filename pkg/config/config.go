// Package config reads the node's configuration file. It is strict: an unknown
// key, a value of the wrong kind, a pool that overlaps another or a second
// document stops the start with the line and what was expected, since a setting
// that is silently ignored is a disk that is silently offered. It decides nothing
// else, and makes nothing.
//
// The file is read into the nodes of the YAML library, which know their lines,
// and each mapping says in one table which keys it has and what reads them
// (fields). docs/reference/configuration.md has every key; a test compares it
// with what is read here.
package config

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// DefaultDirectory is where the pool of a node without configuration has its
// files.
const DefaultDirectory = "/var/lib/rawblock-csi/files"

// Config is the configuration of one node.
type Config struct {
	// MaxVolumes is the number of volumes that the scheduler may place on this
	// node; 0 leaves it unlimited.
	MaxVolumes Count
	// ControllerExpansion says whether ControllerExpandVolume is offered. Where
	// the controller runs on every node nobody can call that of the right one:
	// volumes then grow in NodeExpandVolume.
	ControllerExpansion bool
	// Pools make volumes on this node. No two have the same name, directory or
	// match.
	Pools []Pool
	// Devices says what PersistentVolumes may name.
	Devices Devices
	// Hotplug says how devices get into containers that run already.
	Hotplug Hotplug
	// Encryption says what this node has for encrypted volumes.
	Encryption Encryption
}

// Encryption says what this node has for encrypted volumes.
type Encryption struct {
	// KeyDirectory is the directory of the keys that StorageClasses may name; empty: none.
	KeyDirectory string
}

// Hotplug says how devices get into containers that run already.
type Hotplug struct {
	// CRISocket is the socket of the container runtime; empty: the one that is
	// found.
	CRISocket string
	// AttachmentPods says whether pods may ask for their volume to be attached to
	// another pod of their namespace.
	AttachmentPods bool
}

// Devices says what PersistentVolumes may name.
type Devices struct {
	// Allow are patterns (filepath.Match) of the paths that may be named.
	Allow []Pattern
}

// Count is a number that is not negative.
type Count int64

// Pattern is an absolute path pattern of filepath.Match.
type Pattern string

// Default is the configuration of a node that has no file: one pool that works
// on any machine, and the links that udev names after the hardware may be named. Those
// that the content of a disk decides are left out, since whoever writes to it can forge
// them.
func Default() Config {
	return Config{
		Pools:   []Pool{{Name: "files", File: &FilePool{Directory: DefaultDirectory, Overcommit: 1}}},
		Devices: Devices{Allow: slices.Clone(hardware)},
	}
}

// Load reads the file at path, and looks at the directories that it names. What
// the file leaves out has its default. The error names the file, and the line
// where there is one.
func Load(path string) (Config, error) {
	content, err := linux.ReadTrusted(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	config, err := Parse(content)
	if err == nil {
		err = checkDirectories(config.Pools)
	}
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return config, nil
}

// Parse reads a configuration. What it leaves out has its default. The error
// names each line at fault.
func Parse(content []byte) (Config, error) {
	root, err := document(content)
	if err != nil {
		return Config{}, err
	}
	config := Default()
	if root == nil {
		return config, nil
	}
	if err := config.read(root); err != nil {
		return Config{}, oneLine(err)
	}
	return config, nil
}

func (c *Config) read(node *yaml.Node) error {
	return fields{
		{"maxVolumes", into(&c.MaxVolumes, readCount)},
		{"controllerExpansion", into(&c.ControllerExpansion, readBool)},
		{"pools", into(&c.Pools, readPools)},
		{"devices", into(&c.Devices, c.Devices.read)},
		{"hotplug", into(&c.Hotplug, c.Hotplug.read)},
		{"encryption", into(&c.Encryption, c.Encryption.read)},
	}.read(node, "the configuration")
}

// read reads devices, which have what d has where they do not say.
func (d Devices) read(node *yaml.Node) (Devices, error) {
	err := fields{
		{"allow", into(&d.Allow, listOf(readPattern))},
	}.read(node, "devices")
	return d, err
}

// read reads hotplug, which has what h has where it does not say.
func (h Hotplug) read(node *yaml.Node) (Hotplug, error) {
	err := fields{
		{"criSocket", into(&h.CRISocket, readSocket)},
		{"attachmentPods", into(&h.AttachmentPods, readBool)},
	}.read(node, "hotplug")
	return h, err
}

// read reads encryption, which has what e has where it does not say.
func (e Encryption) read(node *yaml.Node) (Encryption, error) {
	err := fields{
		{"keyDirectory", into(&e.KeyDirectory, readDirectory)},
	}.read(node, "encryption")
	return e, err
}

// Patterns returns the patterns as plain strings.
func (d Devices) Patterns() []string {
	patterns := make([]string, len(d.Allow))
	for i, pattern := range d.Allow {
		patterns[i] = string(pattern)
	}
	return patterns
}
