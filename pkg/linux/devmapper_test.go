package linux_test

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
)

// The calls themselves are tested where there is a device-mapper: test/vm/devmapper.

// A machine without device-mapper is an error that says so, with the kernel's own.
func TestNoMapper(t *testing.T) {
	if _, err := os.Stat("/dev/mapper/control"); err == nil {
		control, err := linux.OpenMapper()
		if err == nil {
			control.Close()
			return
		}
		t.Logf("There is a node, and no module behind it: %v", err)
	}
	_, err := linux.OpenMapper()
	var none *linux.MapperError
	if !errors.As(err, &none) || errors.Unwrap(none) == nil {
		t.Errorf("got %v", err)
	}
}

// asAnswered turns a table as it is loaded into one as it is answered: distances count
// from the first row there.
func asAnswered(table []byte) []byte {
	for at := uint32(0); int(at) < len(table); {
		next := at + binary.NativeEndian.Uint32(table[at+20:])
		binary.NativeEndian.PutUint32(table[at+20:], next)
		at = next
	}
	return table
}

func TestTables(t *testing.T) {
	table := []linux.MappingTarget{
		{Length: 8, Type: "linear", Parameters: "8:16 0"},
		{Start: 8, Length: 1 << 40, Type: "error"},
		{Start: 8 + 1<<40, Length: 1, Type: "sixteen-letters", Parameters: "1234567"}, // With its zero, 8 bytes.
	}
	data := asAnswered(linux.FormatTargets(table))
	got, err := linux.ParseTargets(data, 3)
	if diff := cmp.Diff(table, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if len(data)%8 != 0 {
		t.Errorf("a table of %d bytes is not aligned", len(data))
	}
	if _, err := linux.ParseTargets(data, 4); err == nil {
		t.Error("a row was read behind the end")
	}
}

func FuzzTargets(f *testing.F) {
	f.Add(asAnswered(linux.FormatTargets([]linux.MappingTarget{{Length: 8, Type: "linear", Parameters: "8:16 0"}, {Start: 8, Length: 8, Type: "error"}})), uint32(2))
	f.Fuzz(func(t *testing.T, data []byte, count uint32) {
		table, err := linux.ParseTargets(data, count)
		if err == nil && uint32(len(table)) != count {
			t.Errorf("%d rows of %d", len(table), count)
		}
	})
}

func FuzzMappings(f *testing.F) {
	list := make([]byte, 40)
	list[0], list[1], list[8] = 1, 253, 24
	copy(list[12:], "name")
	list[24], list[25] = 2, 253
	f.Add(list)
	f.Fuzz(func(t *testing.T, data []byte) {
		if mappings, err := linux.ParseMappings(data); err == nil && len(mappings) > len(data) {
			t.Errorf("%d mappings in %d bytes", len(mappings), len(data))
		}
	})
}

func TestMappingsList(t *testing.T) {
	list := make([]byte, 40)
	binary.NativeEndian.PutUint64(list, 253<<8|1)
	binary.NativeEndian.PutUint32(list[8:], 24)
	copy(list[12:], "first")
	binary.NativeEndian.PutUint64(list[24:], 253<<8|2)
	copy(list[36:], "2nd")
	got, err := linux.ParseMappings(list)
	want := map[linux.DeviceNumber]string{{Major: 253, Minor: 1}: "first", {Major: 253, Minor: 2}: "2nd"}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if none, err := linux.ParseMappings(make([]byte, 16)); err != nil || len(none) > 0 {
		t.Errorf("where there is none: %v, %v", none, err)
	}
	if cut, err := linux.ParseMappings(list[:30]); err == nil {
		t.Errorf("cut short: %v", cut)
	}
}
