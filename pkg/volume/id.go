package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
)

// ID is the identity of a provisioned volume or snapshot: POOL/NAME@NODE.
//
// The name is that of the CreateVolume call, so that the call can be repeated
// without a table of what was made. The node is part of the ID since pools of
// different nodes have the same names: a call that reaches the wrong node must
// not be answered as if the volume did not exist (docs/adr/0006-volume-ids.md).
type ID struct {
	// Pool is the name of the pool in the node's configuration.
	Pool string
	// Name is the name of the volume within its pool, as NameOf returns it.
	Name string
	// Node is the name of the node that made it.
	Node string
}

// PoolName is the form of a pool's name: that of a Kubernetes label value's
// part, short enough to leave the names room in an ID.
var PoolName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?$`)

// plainName is what a file, a partition and a logical volume can be called.
var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// String returns the ID as it stands in a PersistentVolume.
func (i ID) String() string { return i.Pool + "/" + i.Name + "@" + i.Node }

// ParseID reads an ID. Whatever is none, such as the handle that an
// administrator gave to a volume, is not ok.
func ParseID(text string) (id ID, ok bool) {
	pool, rest, _ := strings.Cut(text, "/")
	name, node, _ := strings.Cut(rest, "@")
	if !PoolName.MatchString(pool) || !plainName.MatchString(name) || node == "" || strings.ContainsAny(node, "/@") {
		return ID{}, false
	}
	return ID{pool, name, node}, true
}

// Identity returns the one spelling of a volume_id on a node, by which locks, records
// and attachments are kept. POOL/NAME names one volume of the node's pool, whatever
// node stands behind it: a disk that was moved is found by its old ID. Whatever is no
// ID of a pool is its own spelling (docs/adr/0006-volume-ids.md).
func Identity(volumeID, node string) string {
	id, ok := ParseID(volumeID)
	if !ok {
		return volumeID
	}
	id.Node = node
	return id.String()
}

// A GPT entry has room for 36 characters (UEFI 2.10, 5.3.3). Kubernetes calls
// volumes pvc-UUID, which has four more: the hyphens of the UUID.
const maxLabel = 36

// maxSnapshotName bounds the name of a snapshot, which no GPT entry has to hold.
const maxSnapshotName = 64

var (
	uuidName  = regexp.MustCompile(`^(.*)([0-9a-f]{8})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{12})$`)
	uuidLabel = regexp.MustCompile(`^(.*-)([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})$`)
)

// NameOf returns the name within a pool of the volume that a request calls by
// any text: the text itself wherever a partition can bear it, else a hash of it.
func NameOf(requested string) string {
	if !plainName.MatchString(requested) || len(Label(requested)) > maxLabel || NameOfLabel(Label(requested)) != requested {
		return hashName(requested)
	}
	return requested
}

// SnapshotNameOf does the same for a snapshot.
func SnapshotNameOf(requested string) string {
	if !plainName.MatchString(requested) || len(requested) > maxSnapshotName {
		return hashName(requested)
	}
	return requested
}

func hashName(requested string) string {
	hash := sha256.Sum256([]byte(requested))
	return "name-" + hex.EncodeToString(hash[:15])
}

// Label returns the name of a volume in at most 36 characters: the hyphens of a
// UUID at its end are left out.
func Label(name string) string { return uuidName.ReplaceAllString(name, "$1$2$3$4$5$6") }

// NameOfLabel returns the name of the volume with a label.
func NameOfLabel(label string) string { return uuidLabel.ReplaceAllString(label, "$1$2-$3-$4-$5-$6") }
