// Package config reads the node's configuration file. It is strict: an unknown
// key, a value of the wrong kind or a second document stops the start with the
// line and what was expected, since a setting that is silently ignored is a
// disk that is silently offered. It decides nothing else.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Config is the configuration of one node.
type Config struct {
	// MaxVolumes is the number of volumes that the scheduler may place on this
	// node; 0 leaves it unlimited.
	MaxVolumes Count `yaml:"maxVolumes"`
	// Devices says what PersistentVolumes may name.
	Devices Devices `yaml:"devices"`
}

// Devices says what PersistentVolumes may name.
type Devices struct {
	// Allow are patterns (filepath.Match) of the paths that may be named.
	Allow []Pattern `yaml:"allow"`
}

// Count is a number that is not negative.
type Count int64

// Pattern is an absolute path pattern of filepath.Match.
type Pattern string

// Default is the configuration of a node that has no file: the links that udev
// names by the identity of a disk may be named. Links by label or UUID of a
// filesystem are left out, since whoever writes to a disk can forge them.
func Default() Config {
	return Config{Devices: Devices{Allow: []Pattern{"/dev/disk/by-id/*"}}}
}

// Load reads the file at path. What the file leaves out has its default.
func Load(path string) (Config, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	config, err := Parse(content)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return config, nil
}

// Parse reads a configuration. What it leaves out has its default.
func Parse(content []byte) (Config, error) {
	config := Default()
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	if err := decoder.Decode(&config); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, readable(err)
	}
	var second yaml.Node
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("line %d: expected one YAML document, found more", second.Line)
	}
	return config, nil
}

// readable takes the words of the YAML library's Go types out of its errors.
func readable(err error) error {
	var typeError *yaml.TypeError
	if !errors.As(err, &typeError) {
		return err
	}
	words := strings.NewReplacer(
		"not found in type config.Config", "is unknown (expected one of: maxVolumes, devices)",
		"not found in type config.Devices", "is unknown in devices (expected: allow)",
		"into config.Config", "(expected a mapping with the keys maxVolumes, devices)",
		"into config.Devices", "(expected a mapping with the key allow)",
		"into []config.Pattern", "(expected a list of path patterns)",
	)
	return errors.New(words.Replace(strings.Join(typeError.Errors, "; ")))
}

// UnmarshalYAML reads a Count.
func (c *Count) UnmarshalYAML(node *yaml.Node) error {
	var value int64
	// The YAML library would cut a fraction off.
	if err := node.Decode(&value); err != nil || node.ShortTag() != "!!int" || value < 0 {
		return fmt.Errorf("line %d: %q is not a count; expected a whole number that is not negative", node.Line, node.Value)
	}
	*c = Count(value)
	return nil
}

// UnmarshalYAML reads a Pattern.
func (p *Pattern) UnmarshalYAML(node *yaml.Node) error {
	var value string
	if err := node.Decode(&value); err != nil {
		return fmt.Errorf("line %d: %q is not a path pattern; expected an absolute path such as /dev/disk/by-id/*", node.Line, node.Value)
	}
	if _, err := path.Match(value, ""); err != nil || !filepath.IsAbs(value) || filepath.Clean(value) != value {
		return fmt.Errorf("line %d: %q is not a path pattern; expected an absolute path such as /dev/disk/by-id/*", node.Line, value)
	}
	*p = Pattern(value)
	return nil
}

// Patterns returns the patterns as plain strings.
func (d Devices) Patterns() []string {
	patterns := make([]string, len(d.Allow))
	for i, pattern := range d.Allow {
		patterns[i] = string(pattern)
	}
	return patterns
}
