package config

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Pool makes volumes of one kind: exactly one of File, Disk and LVM is set.
type Pool struct {
	// Name is the name of the pool: volume.PoolName.
	Name string
	// File is a pool of files.
	File *FilePool
	// Disk is a pool of disks.
	Disk *DiskPool
	// LVM is a pool of logical volumes.
	LVM *LVMPool
	// Line is where the pool stands in the file; 0: it is the default.
	Line int
}

// FilePool is a directory of files.
type FilePool struct {
	// Directory is the absolute, clean path.
	Directory string
	// Capacity is the most that all volumes and snapshots together may take, in
	// bytes; 0: not given.
	Capacity uint64
	// Overcommit is the factor, at least 1, by which the sizes of thin volumes
	// together may exceed the capacity.
	Overcommit float64
	// Line is where the directory stands in the file; 0: it is the default.
	Line int
}

// readPools reads all pools, and refuses each that is in conflict with one above
// it.
func readPools(node *yaml.Node) ([]Pool, error) {
	pools, err := listOf(readPool)(node)
	if err != nil {
		return nil, err
	}
	var errs []error
	for i, pool := range pools {
		for _, above := range pools[:i] {
			if err := pool.checkBeside(above); err != nil {
				errs = append(errs, err)
				break
			}
		}
	}
	return pools, errors.Join(errs...)
}

func readPool(node *yaml.Node) (Pool, error) {
	pool := Pool{Line: node.Line}
	kinds := fields{
		{"file", into(&pool.File, pointerTo(readFilePool))},
		{"disk", into(&pool.Disk, pointerTo(readDiskPool))},
		{"lvm", into(&pool.LVM, pointerTo(readLVMPool))},
	}
	if err := append(fields{{"name", into(&pool.Name, readPoolName)}}, kinds...).read(node, "a pool"); err != nil {
		return Pool{}, err
	}
	if pool.Name == "" {
		return Pool{}, fmt.Errorf("line %d: the pool has no name; StorageClasses need one", node.Line)
	}
	given := 0
	for _, kind := range []bool{pool.File != nil, pool.Disk != nil, pool.LVM != nil} {
		if kind {
			given++
		}
	}
	if given != 1 {
		return Pool{}, fmt.Errorf("line %d: pool %q must be of one kind; expected one of: %s", node.Line, pool.Name, kinds.keys())
	}
	return pool, nil
}

func readFilePool(node *yaml.Node) (FilePool, error) {
	pool := FilePool{Overcommit: 1}
	err := fields{
		{"directory", func(node *yaml.Node) (err error) {
			pool.Line = node.Line
			pool.Directory, err = readDirectory(node)
			return err
		}},
		{"capacity", into(&pool.Capacity, readSize)},
		{"overcommit", into(&pool.Overcommit, readOvercommit)},
	}.read(node, "file")
	if err != nil {
		return FilePool{}, err
	}
	if pool.Directory == "" {
		return FilePool{}, fmt.Errorf("line %d: file has no directory; name the one that the volumes are to be in", node.Line)
	}
	if float64(pool.Capacity)*pool.Overcommit >= math.MaxInt64 {
		return FilePool{}, fmt.Errorf("line %d: capacity * overcommit is 8 EiB or more; lower one of them", node.Line)
	}
	return pool, nil
}

// checkBeside refuses two pools that would use the same space or name.
func (p Pool) checkBeside(above Pool) error {
	if p.Name == above.Name {
		return fmt.Errorf("line %d: the name %q is that of the pool in line %d already; change one", p.Line, p.Name, above.Line)
	}
	switch {
	case p.File != nil && above.File != nil:
		return p.checkDirectory(above)
	case p.Disk != nil && above.Disk != nil:
		return p.checkMatch(above)
	case p.LVM != nil && above.LVM != nil:
		return p.checkGroup(above)
	default:
		return nil
	}
}

func (p Pool) checkDirectory(above Pool) error {
	if isWithin(p.File.Directory, above.File.Directory) || isWithin(above.File.Directory, p.File.Directory) {
		return fmt.Errorf("line %d: the directory %s of pool %q overlaps %s of pool %q in line %d; give each pool a directory beside the others",
			p.File.Line, p.File.Directory, p.Name, above.File.Directory, above.Name, above.File.Line)
	}
	return nil
}

// isWithin reports whether a clean path is that of a directory or lies below it.
func isWithin(path, dir string) bool { return strings.HasPrefix(path+"/", dir+"/") }

// checkDirectories refuses a directory that is something else. One that does not
// exist is made by its pool.
func checkDirectories(pools []Pool) error {
	for _, pool := range pools {
		if pool.File == nil {
			continue
		}
		info, err := os.Stat(pool.File.Directory)
		if err == nil && !info.IsDir() {
			err = errors.New("it is no directory")
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("line %d: the directory %s of pool %q cannot be used: %w; name one that exists, or that can be made",
				pool.File.Line, pool.File.Directory, pool.Name, err)
		}
	}
	return nil
}
