package config

import (
	"fmt"
	"regexp"

	"go.yaml.in/yaml/v3"
)

// LVMPool is a volume group, or a thin pool in one.
type LVMPool struct {
	// VolumeGroup is its name.
	VolumeGroup string
	// VGUUID is its UUID; "": whatever it has.
	VGUUID string
	// ThinPool is the name of a thin pool in it; "": volumes are thick.
	ThinPool string
	// Overcommit is the factor, at least 1, by which the sizes of all volumes of the
	// thin pool together may exceed it.
	Overcommit float64
	// Wipe is how a thick volume is wiped whose StorageClass does not say: "discard",
	// "zero" or "secure".
	Wipe string
	// Line is where the volume group stands in the file.
	Line int
}

func readLVMPool(node *yaml.Node) (LVMPool, error) {
	pool := LVMPool{Overcommit: 1, Wipe: "discard"}
	var overcommitLine, wipeLine int
	err := fields{
		{"volumeGroup", at(&pool.Line, into(&pool.VolumeGroup, readLVMName))},
		{"vgUUID", into(&pool.VGUUID, readVGUUID)},
		{"thinPool", into(&pool.ThinPool, readLVMName)},
		{"overcommit", at(&overcommitLine, into(&pool.Overcommit, readOvercommit))},
		{"wipe", at(&wipeLine, into(&pool.Wipe, oneOf("discard", "zero", "secure")))},
	}.read(node, "lvm")
	switch {
	case err != nil:
		return LVMPool{}, err
	case pool.VolumeGroup == "":
		return LVMPool{}, fmt.Errorf("line %d: lvm has no volumeGroup; name the one that the volumes are to be in", node.Line)
	case pool.ThinPool == "" && overcommitLine != 0:
		return LVMPool{}, fmt.Errorf("line %d: overcommit is for a pool with a thinPool; thick volumes take what they promise", overcommitLine)
	case pool.ThinPool != "" && wipeLine != 0:
		return LVMPool{}, fmt.Errorf("line %d: wipe is for a pool without a thinPool, which zeroes what it gives to a volume", wipeLine)
	}
	return pool, nil
}

// at keeps the line of a value that is read.
func at(line *int, read func(*yaml.Node) error) func(*yaml.Node) error {
	return func(node *yaml.Node) error {
		*line = node.Line
		return read(node)
	}
}

// lvmName is the form of a name (lvm(8), "VALID NAMES"). It is shorter than LVM allows,
// so that the names of volumes have room beside that of their group in a device's.
var lvmName = regexp.MustCompile(`^[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,31}$`)

func readLVMName(node *yaml.Node) (string, error) {
	isName := func(text string) bool { return lvmName.MatchString(text) && text != "." && text != ".." }
	return readText(node, isName, "a name of LVM's", "at most 32 letters, digits and characters of +_.-, with no hyphen at the start")
}

// vgUUID is the form of a UUID, as vgs -o vg_uuid prints it (ID_LEN in lib/uuid/uuid.c of
// lvm2).
var vgUUID = regexp.MustCompile(`^[A-Za-z0-9]{6}(-[A-Za-z0-9]{4}){5}-[A-Za-z0-9]{6}$`)

func readVGUUID(node *yaml.Node) (string, error) {
	return readText(node, vgUUID.MatchString, "a UUID of LVM's", "what vgs -o vg_uuid prints")
}

// checkGroup refuses two pools in one place.
func (p Pool) checkGroup(above Pool) error {
	if p.LVM.VolumeGroup == above.LVM.VolumeGroup && p.LVM.ThinPool == above.LVM.ThinPool {
		return fmt.Errorf("line %d: pool %q takes the same of volume group %s as pool %q in line %d; let one of them have a thin pool of its own",
			p.LVM.Line, p.Name, p.LVM.VolumeGroup, above.Name, above.LVM.Line)
	}
	return nil
}
