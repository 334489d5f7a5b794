package process

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Node is the node of a block device in the /dev of a container.
type Node struct {
	// Container is the ID of the container, PID its first process as the host counts.
	Container string
	PID       int
	// Path is that of the node, as the container sees it.
	Path string
	// Number is the number of the device.
	Number linux.DeviceNumber
}

// Nodes returns the nodes of block devices in the /dev of all containers that have an
// ID, in the order of containers and paths. Nodes elsewhere in a container, where a pod
// may want them too, are not looked for: its whole tree would have to be searched. What
// ends meanwhile is left out, and a /dev that does not answer.
func (t Table) Nodes() ([]Node, error) {
	first, err := t.firsts()
	if err != nil {
		return nil, err
	}
	var found []Node
	for id, pid := range first {
		nodes, err := t.askNodes(pid)
		if errors.Is(err, volume.ErrNotFound) || errors.Is(err, linux.ErrStuck) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, node := range nodes {
			node.Container = id
			found = append(found, node)
		}
	}
	slices.SortFunc(found, func(a, b Node) int {
		return cmp.Or(strings.Compare(a.Container, b.Container), strings.Compare(a.Path, b.Path))
	})
	return found, nil
}

// firsts returns the first process of each container that has an ID.
func (t Table) firsts() (map[string]int, error) {
	all, err := t.all()
	if err != nil {
		return nil, err
	}
	first, started := map[string]int{}, map[string]uint64{}
	for _, pid := range all {
		id, err := t.ContainerOf(pid)
		if err == nil && id != "" {
			var start uint64
			start, err = t.StartTime(pid)
			if _, known := first[id]; err == nil && (!known || start < started[id]) {
				first[id], started[id] = pid, start
			}
		}
		if err != nil && !errors.Is(err, volume.ErrNotFound) {
			return nil, err
		}
	}
	return first, nil
}

// askNodes is nodesOf with a time limit: what the container has as its /dev may hang.
func (t Table) askNodes(pid int) ([]Node, error) {
	return linux.Ask(t.limit, fmt.Sprintf("nodes of %d", pid), func() ([]Node, error) { return t.nodesOf(pid) })
}

func (t Table) nodesOf(pid int) ([]Node, error) {
	root, err := linux.StatPath(t.path(pid, "root"))
	if err == nil {
		var other int
		if other, err = t.WhoseRoot(root.ID, pid); other != 0 {
			return nil, nil // It is still being started, and these are the host's.
		}
	}
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, wrap(pid, err)
	}
	dir := t.path(pid, "root/dev")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil // It has more capabilities than we.
	}
	if err != nil {
		return nil, wrap(pid, err)
	}
	var nodes []Node
	for _, entry := range entries {
		if entry.Type() != fs.ModeDevice {
			continue
		}
		info, err := linux.StatPath(filepath.Join(dir, entry.Name()))
		if err == nil && info.IsBlockDevice() {
			nodes = append(nodes, Node{PID: pid, Path: "/dev/" + entry.Name(), Number: info.Device})
		}
	}
	return nodes, nil
}
