package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Holder is a process that has a block device open, or mapped into its memory.
type Holder struct {
	// PID is its number, as the host counts.
	PID int
	// Command is its name, of at most 15 bytes.
	Command string
	// Container is the ID of the container that it is in, if any.
	Container string
	// Nodes are the nodes that it opened the device by.
	Nodes []linux.FileID
	// Unknown says that the kernel did not tell in time what it has open.
	Unknown bool
}

// patience is how long the kernel may take to tell what one process has open.
const patience = 2 * time.Second

// Holders returns the processes that have the block device open or mapped, but not
// the one that is left out. nodes are nodes of the device that are known: where a
// filesystem refuses to tell what a descriptor is of, since it was shut down or is a
// program that has ended, only one of these counts as the device.
//
// What /proc does not show is not found: a descriptor that is on its way through a
// socket, a file that is registered with an io_uring and closed otherwise, and one
// of a thread that does not share the descriptors of its process. A process that has
// more capabilities than the plugin cannot be looked into (ptrace(2), access mode
// checking), and is passed over where it is in no container.
func (t Table) Holders(ctx context.Context, number linux.DeviceNumber, leftOut int, nodes ...linux.FileID) ([]Holder, error) {
	all, err := t.all()
	if err != nil {
		return nil, err
	}
	search := &search{table: t, number: number, nodes: nodes, seen: map[mapped]bool{}}
	var found []Holder
	for _, pid := range all {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look for who has device %s open: %w", number, err)
		}
		if pid == leftOut {
			continue
		}
		holder, holds, err := search.lookFor(ctx, pid)
		if errors.Is(err, volume.ErrNotFound) || errors.Is(err, fs.ErrPermission) && t.isOfHost(pid) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for who has device %s open: %w", number, err)
		}
		if holds {
			found = append(found, holder)
		}
		if holder.Unknown {
			// What the search has found out so far still belongs to that look.
			search = search.anew()
		}
	}
	return found, nil
}

func (t Table) isOfHost(pid int) bool {
	id, err := t.ContainerOf(pid)
	return err == nil && id == ""
}

// search is a search for one device through all processes.
type search struct {
	table  Table
	number linux.DeviceNumber
	nodes  []linux.FileID
	// seen says of each mapped file whether it is a node of the device: libraries
	// are mapped by many.
	seen map[mapped]bool
}

func (s *search) anew() *search {
	return &search{table: s.table, number: s.number, nodes: s.nodes, seen: map[mapped]bool{}}
}

// lookFor looks at a process for as long as there is patience: a process whose memory is
// being filled by a filesystem that hangs keeps everybody waiting who reads of it.
func (s *search) lookFor(ctx context.Context, pid int) (Holder, bool, error) {
	type answer struct {
		holder Holder
		holds  bool
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		holder, holds, err := s.look(pid)
		answers <- answer{holder, holds, err}
	}()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case a := <-answers:
		return a.holder, a.holds, a.err
	case <-ctx.Done():
		return Holder{}, false, ctx.Err()
	case <-limit.C:
		// The cgroup is told without looking into the process.
		container, err := s.table.ContainerOf(pid)
		return Holder{PID: pid, Command: "does not answer", Container: container, Unknown: true}, true, err
	}
}

func (s *search) look(pid int) (Holder, bool, error) {
	nodes, err := s.descriptors(pid)
	if err != nil {
		return Holder{}, false, err
	}
	mapped, err := s.mappings(pid)
	if err != nil {
		return Holder{}, false, err
	}
	nodes = append(nodes, mapped...)
	if len(nodes) == 0 {
		return Holder{}, false, nil
	}
	stat, err := s.table.stat(pid)
	if err != nil {
		return Holder{}, false, err
	}
	container, err := s.table.ContainerOf(pid)
	if err != nil {
		return Holder{}, false, err
	}
	return Holder{PID: pid, Command: stat.command, Container: container, Nodes: nodes}, true, nil
}

// descriptors returns the nodes of the device that the process has open.
func (s *search) descriptors(pid int) ([]linux.FileID, error) {
	folder := s.table.path(pid, "fd")
	names, err := linux.ReadNames(folder)
	if err != nil {
		return nil, wrap(pid, err)
	}
	var nodes []linux.FileID
	for _, name := range names {
		node, is, err := s.node(filepath.Join(folder, name))
		if err != nil {
			node, is, err = s.known(pid, name)
		}
		if err == nil && is && !slices.Contains(nodes, node) {
			if is, err = s.isOpen(pid, name); is {
				nodes = append(nodes, node)
			}
		}
		if err != nil {
			return nil, wrap(pid, err)
		}
	}
	return nodes, nil
}

// known reports whether a descriptor whose filesystem does not tell what it is of has the
// inode of a known node, as the kernel has it (proc_pid_fdinfo(5); since Linux 5.14).
func (s *search) known(pid int, descriptor string) (linux.FileID, bool, error) {
	text, err := os.ReadFile(s.table.path(pid, "fdinfo/"+descriptor))
	if err != nil && !hasEnded(err) {
		return linux.FileID{}, false, err
	}
	for line := range strings.Lines(string(text)) {
		value, ok := strings.CutPrefix(line, "ino:")
		if !ok {
			continue
		}
		inode := strings.TrimSpace(value)
		at := slices.IndexFunc(s.nodes, func(node linux.FileID) bool { return strconv.FormatUint(node.Inode, 10) == inode })
		if at >= 0 {
			return s.nodes[at], true, nil
		}
	}
	return linux.FileID{}, false, nil
}

// isOpen reports whether a descriptor of a node has the device open. One that only
// names the node (O_PATH) has not: whoever opens the device by it is checked then.
func (s *search) isOpen(pid int, descriptor string) (bool, error) {
	text, err := os.ReadFile(s.table.path(pid, "fdinfo/"+descriptor))
	if hasEnded(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	flags, err := parseFlags(string(text))
	return flags&pathOnly == 0, err
}

// pathOnly is O_PATH of asm-generic/fcntl.h.
const pathOnly = 0o10000000

// parseFlags reads how a file was opened from /proc/PID/fdinfo/FD
// (proc_pid_fdinfo(5)).
func parseFlags(text string) (uint64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 64)
			if err != nil {
				return 0, fmt.Errorf("flags of a descriptor: %w", err)
			}
			return flags, nil
		}
	}
	return 0, fmt.Errorf("malformed fdinfo %q", text)
}

// mappings returns the nodes of the device that the process has mapped.
func (s *search) mappings(pid int) ([]linux.FileID, error) {
	text, err := s.table.read(pid, "maps")
	if err != nil {
		return nil, err
	}
	var nodes []linux.FileID
	for line := range strings.Lines(text) {
		file, area, ok := parseMapping(line)
		if !ok {
			continue
		}
		isNode, known := s.seen[file]
		if known && !isNode {
			continue
		}
		node, isNode, err := s.node(s.table.path(pid, "map_files/"+area))
		if err != nil {
			// Of a filesystem that does not tell: a known node has its inode.
			at := slices.IndexFunc(s.nodes, func(node linux.FileID) bool { return strconv.FormatUint(node.Inode, 10) == file.inode })
			if isNode = at >= 0; isNode {
				node = s.nodes[at]
			}
		}
		s.seen[file] = isNode
		if isNode && !slices.Contains(nodes, node) {
			nodes = append(nodes, node)
		}
	}
	return nodes, nil
}

// mapped names a mapped file.
type mapped struct{ device, inode string }

// parseMapping reads a line of /proc/PID/maps (proc_pid_maps(5)) that has a file
// behind it, and returns the file, and the name of the area in
// /proc/PID/map_files, which has no leading zeros.
func parseMapping(line string) (file mapped, area string, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 6 || fields[4] == "0" {
		return mapped{}, "", false
	}
	begin, end, _ := strings.Cut(fields[0], "-")
	from, err := strconv.ParseUint(begin, 16, 64)
	if err != nil {
		return mapped{}, "", false
	}
	to, err := strconv.ParseUint(end, 16, 64)
	if err != nil {
		return mapped{}, "", false
	}
	return mapped{fields[3], fields[4]}, fmt.Sprintf("%x-%x", from, to), true
}

// node reports whether what a link of /proc leads to is a node of the device, and
// which one. One that is gone meanwhile is not.
func (s *search) node(path string) (linux.FileID, bool, error) {
	info, err := linux.StatCached(path)
	if hasEnded(err) {
		return linux.FileID{}, false, nil
	}
	return info.ID, err == nil && info.IsBlockDevice() && info.Device == s.number, err
}
