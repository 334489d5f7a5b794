package lvm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// kind is what a logical volume is to the pool.
type kind string

const (
	volumeKind   kind = "volume"
	snapshotKind kind = "snapshot"
	// spaceKind has no name: a volume that was deleted and is wiped, or extents that are
	// wiped for a volume to grow by.
	spaceKind kind = "space"
)

// The keys of tags, and what is before them. They are in metadata of volume groups:
// they must never change.
const (
	tagPrefix     = "rawblock."
	stateKey      = "state"
	sourceKey     = "source"
	ofKey         = "of"
	createdKey    = "created"
	wipeKey       = "wipe"
	wipedKey      = "wiped"
	encryptionKey = "encryption"
)

// making is the value of state of what is not whole yet; what is whole has none.
const making = "making"

// record is what the tags of a logical volume say.
type record struct {
	kind kind
	// name is the name of the volume or snapshot.
	name string
	// making says that it is not whole: nobody has been given it.
	making bool
	// source is what a volume was made from.
	source volume.Source
	// of and created are the volume that a snapshot shows, and since when.
	of      string
	created time.Time
	// wipe is how the extents of a thick volume are wiped; zero: it has none of its own.
	wipe wipe
	// wiped is how many bytes of a space, from its start, are wiped.
	wiped uint64
	// encryption is what the driver makes of the volume; the pool only keeps it.
	encryption volume.Encryption
}

// identity is the tag by which a logical volume is the pool's.
func (r record) identity(pool string) string {
	if r.kind == spaceKind {
		return tag(string(r.kind), pool)
	}
	return tag(string(r.kind), pool+"/"+r.name)
}

func tag(key, value string) string { return tagPrefix + key + "=" + value }

// tags are all that a logical volume with the record has.
func (r record) tags(pool string) []string {
	tags := []string{r.identity(pool)}
	add := func(key, value string, given bool) {
		if given {
			tags = append(tags, tag(key, value))
		}
	}
	add(stateKey, making, r.making)
	add(sourceKey, "volume/"+r.source.Volume, r.source.Volume != "")
	add(sourceKey, "snapshot/"+r.source.Snapshot, r.source.Snapshot != "")
	add(ofKey, r.of, r.of != "")
	add(createdKey, r.created.UTC().Format(time.RFC3339), !r.created.IsZero())
	add(wipeKey, r.wipe.String(), r.wipe != 0)
	add(wipedKey, strconv.FormatUint(r.wiped, 10), r.wiped != 0)
	add(encryptionKey, string(r.encryption), r.encryption != volume.Plain)
	return tags
}

// readRecord reads the tags of a logical volume. It is not ours where no tag says so.
// One that is ours and whose other tags cannot be understood is an error: a later
// version of the plugin may have made it.
func readRecord(pool string, tags []string) (r record, ours bool, err error) {
	fields := map[string]string{}
	for _, text := range tags {
		rest, own := strings.CutPrefix(text, tagPrefix)
		key, value, _ := strings.Cut(rest, "=")
		switch {
		case !own:
		case key == string(volumeKind), key == string(snapshotKind), key == string(spaceKind):
			owner, name, _ := strings.Cut(value, "/")
			if owner != pool {
				continue
			}
			if ours {
				return r, true, fmt.Errorf("it has the tags of %s %q and %s %q", r.kind, r.name, key, name)
			}
			r.kind, r.name, ours = kind(key), name, true
		case fields[key] != "":
			fields[key] = "twice"
		default:
			fields[key] = value
		}
	}
	if !ours {
		return record{}, false, nil
	}
	return r, true, r.readFields(fields)
}

func (r *record) readFields(fields map[string]string) (err error) {
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		value := fields[key]
		switch key {
		case stateKey:
			if r.making = value == making; !r.making {
				err = fmt.Errorf("expected %s", making)
			}
		case sourceKey:
			r.source, err = readSource(value)
		case ofKey:
			r.of = value
		case createdKey:
			r.created, err = time.Parse(time.RFC3339, value)
		case wipeKey:
			r.wipe, err = parseWipe(value)
		case wipedKey:
			r.wiped, err = strconv.ParseUint(value, 10, 63)
		case encryptionKey:
			if r.encryption = volume.Encryption(value); !r.encryption.Known() {
				err = errors.New("it is none that this version knows")
			}
		default:
			err = errors.New("it is none that this version knows")
		}
		if err != nil {
			return fmt.Errorf("tag %s: %w", tag(key, value), err)
		}
	}
	return nil
}

func readSource(text string) (volume.Source, error) {
	of, name, _ := strings.Cut(text, "/")
	switch {
	case name != "" && of == "volume":
		return volume.Source{Volume: name}, nil
	case name != "" && of == "snapshot":
		return volume.Source{Snapshot: name}, nil
	}
	return volume.Source{}, errors.New("expected volume/NAME or snapshot/NAME")
}

// maxMapping is how long the name of a mapping may be: DM_NAME_LEN in
// linux/dm-ioctl.h, less the final zero.
const maxMapping = 127

// labelPrefix begins the names of the pool's logical volumes.
const labelPrefix = "rawblock."

// label returns the name of a logical volume: that of what it is as far as LVM allows
// it, and a hash by which it is its own. Tags say what it is, and not its name.
//
// An underscore becomes a point, since LVM reserves names with certain words behind
// one (lvm(8), "VALID NAMES").
func label(group, pool string, kind kind, name string) string {
	sum := sha256.Sum256([]byte(string(kind) + " " + pool + "/" + name))
	end := "." + hex.EncodeToString(sum[:6])
	readable := strings.ReplaceAll(name, "_", ".")
	for len(mappingName(group, labelPrefix+readable+end)) > maxMapping && readable != "" {
		readable = readable[:len(readable)-1]
	}
	return labelPrefix + readable + end
}

// mappingName returns the name that LVM gives to the mapping of a logical volume: a
// hyphen stands between the names, and two for one within them.
func mappingName(group, name string) string {
	double := strings.NewReplacer("-", "--")
	return double.Replace(group) + "-" + double.Replace(name)
}

// uuidPrefix begins the UUIDs of LVM's mappings (lib/activate/dev_manager.c of lvm2).
const uuidPrefix = "LVM-"

// mappingUUID returns the UUID that LVM gives to it.
func mappingUUID(group, uuid string) string {
	return uuidPrefix + strings.ReplaceAll(group, "-", "") + strings.ReplaceAll(uuid, "-", "")
}
