package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

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
	// Unknown says what could not be looked at, and may be the device: such as a descriptor
	// of a file whose server does not answer. Where it is all, nobody knows whether the
	// process holds the device.
	Unknown []string
	// Silent says that the kernel did not tell in time what it has open or mapped: its memory
	// is being filled by a filesystem that hangs.
	Silent bool
}

// IsKnown reports whether the process is known to have the device.
func (h Holder) IsKnown() bool { return len(h.Nodes) > 0 }

// Holders returns the processes that have the block device open or mapped, but not
// the one that is left out.
//
// What /proc does not show is not found: a descriptor that is on its way through a
// socket, and a file that is registered with an io_uring and closed otherwise. A process that has
// more capabilities than the plugin cannot be looked into (ptrace(2), access mode
// checking), and is passed over where it is in no container.
func (t Table) Holders(ctx context.Context, number linux.DeviceNumber, leftOut int) ([]Holder, error) {
	all, err := t.all()
	if err != nil {
		return nil, err
	}
	search := search{table: t, number: number, seq: diskSeq(number), seen: map[mapped]bool{}}
	var found []Holder
	for _, pid := range all {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look for who has device %s open: %w", number, err)
		}
		if pid == leftOut {
			continue
		}
		holder, holds, err := search.look(pid)
		if errors.Is(err, volume.ErrNotFound) || errors.Is(err, fs.ErrPermission) && t.isOfHost(pid) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for who has device %s open: %w", number, err)
		}
		if holds {
			found = append(found, holder)
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
	// seq is the sequence number of the device's disk, empty where the kernel has none.
	seq string
	// seen says of each mapped file whether it is a node of the device: libraries
	// are mapped by many.
	seen map[mapped]bool
}

func (s *search) look(pid int) (Holder, bool, error) {
	found := Holder{PID: pid}
	if err := s.descriptors(pid, &found); err != nil {
		return Holder{}, false, err
	}
	if err := s.mappings(pid, &found); err != nil {
		return Holder{}, false, err
	}
	if !found.IsKnown() && len(found.Unknown) == 0 && !found.Silent {
		return Holder{}, false, nil
	}
	// Unlike stat, neither waits for the memory of the process.
	command, err := s.table.read(pid, "comm")
	if err != nil {
		return Holder{}, false, err
	}
	if found.Container, err = s.table.ContainerOf(pid); err != nil {
		return Holder{}, false, err
	}
	found.Command = strings.TrimSuffix(command, "\n")
	return found, true, nil
}

// descriptors adds the nodes of the device that the process has open.
func (s *search) descriptors(pid int, found *Holder) error {
	// While the process executes a program, the kernel may not answer.
	tables, err := linux.Ask(s.table.limit, fmt.Sprintf("threads of %d", pid), func() ([]string, error) { return s.tables(pid) })
	if errors.Is(err, linux.ErrStuck) {
		found.Silent = true
		return nil
	}
	if err != nil {
		return err
	}
	for _, dir := range tables {
		names, err := linux.ReadNames(s.table.path(pid, dir+"fd"))
		if hasEnded(err) && dir != "" {
			continue // The thread has ended.
		}
		if err != nil {
			return wrap(pid, err)
		}
		for _, name := range names {
			node, is, err := s.descriptor(pid, dir, name)
			switch {
			case err != nil:
				found.Unknown = append(found.Unknown, fmt.Sprintf("descriptor %s: %v", name, err))
			case is && !slices.Contains(found.Nodes, node):
				found.Nodes = append(found.Nodes, node)
			}
		}
	}
	return nil
}

// tables returns where in /proc/PID the tables of descriptors of a process are: its own, and
// those of threads that do not share it (unshare(2), CLONE_FILES). Errors: EPERM for a process
// that may not be looked into.
func (s *search) tables(pid int) ([]string, error) {
	if err := linux.CheckInspectable(pid); err != nil {
		return nil, wrap(pid, err)
	}
	threads, err := linux.ReadNames(s.table.path(pid, "task"))
	if err != nil {
		return nil, wrap(pid, err)
	}
	found := []string{""}
	for _, name := range threads {
		thread, err := strconv.Atoi(name)
		if err == nil && thread != pid && !linux.SharesDescriptors(pid, thread) {
			found = append(found, "task/"+name+"/")
		}
	}
	return found, nil
}

// isOpen reports whether a descriptor of a node has the device open. One that only
// names the node (O_PATH) has not: whoever opens the device by it is checked then.
func (s *search) isOpen(pid int, dir, descriptor string) (bool, error) {
	text, err := os.ReadFile(s.table.path(pid, dir+"fdinfo/"+descriptor))
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

// mappings adds the nodes of the device that the process has mapped.
func (s *search) mappings(pid int, found *Holder) error {
	if found.Silent {
		return nil // Nor would it tell this.
	}
	text, err := s.maps(pid)
	if errors.Is(err, linux.ErrStuck) {
		found.Silent = true
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		file, area, ok := parseMapping(line)
		if !ok {
			continue
		}
		isNode, known := s.seen[file]
		if known && !isNode {
			continue
		}
		node, isNode, err := s.mapping(pid, area)
		if err != nil {
			found.Unknown = append(found.Unknown, fmt.Sprintf("mapping %s: %v", area, err))
			continue
		}
		s.seen[file] = isNode
		if isNode && !slices.Contains(found.Nodes, node) {
			found.Nodes = append(found.Nodes, node)
		}
	}
	return nil
}

// maps reads /proc/PID/maps, which waits where the process changes its memory and waits for
// a filesystem.
func (s *search) maps(pid int) (string, error) {
	return linux.Ask(s.table.limit, fmt.Sprintf("maps of %d", pid), func() (string, error) { return s.table.read(pid, "maps") })
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
