package gpt

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
)

// GUID is an identifier as it stands on the disk: the first three fields are
// little-endian (UEFI 2.10, appendix A).
type GUID [16]byte

// The versions of RFC 9562.
const (
	randomVersion = 4
	customVersion = 8
)

// NewGUID returns a random GUID.
func NewGUID() GUID {
	var id GUID
	rand.Read(id[:]) //nolint:errcheck,gosec // It never fails (crypto/rand).
	return id.withVersion(randomVersion)
}

// HashGUID returns the GUID that is always that of a text.
func HashGUID(text string) GUID {
	hash := sha256.Sum256([]byte(text))
	return GUID(hash[:16]).withVersion(customVersion)
}

func (g GUID) withVersion(version byte) GUID {
	g[7] = g[7]&0x0f | version<<4
	g[8] = g[8]&0x3f | 0x80
	return g
}

// String returns the GUID as sfdisk and lsblk show it.
func (g GUID) String() string {
	return strings.ToUpper(fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(g[:4]),
		binary.LittleEndian.Uint16(g[4:]), binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:]))
}

var guidForm = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// ParseGUID reads what String returns, in capitals or not.
func ParseGUID(text string) (GUID, error) {
	var id GUID
	if !guidForm.MatchString(text) {
		return id, fmt.Errorf("%q is not a GUID", text)
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil {
		return id, fmt.Errorf("%q is not a GUID: %w", text, err)
	}
	binary.LittleEndian.PutUint32(id[:], binary.BigEndian.Uint32(raw))
	binary.LittleEndian.PutUint16(id[4:], binary.BigEndian.Uint16(raw[4:]))
	binary.LittleEndian.PutUint16(id[6:], binary.BigEndian.Uint16(raw[6:]))
	copy(id[8:], raw[8:])
	return id, nil
}
