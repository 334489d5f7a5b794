package publish

import (
	"math"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

const bootID = "d0e2b5f4-9b1c-4a53-8f0e-2f6f3d1a7c11"

func TestStagedRecord(t *testing.T) {
	for text, record := range map[string]staged{
		"device=7:1 diskseq=42 mode=SINGLE_NODE_WRITER boot=" + bootID + " volume=vol": {
			linux.DeviceNumber{Major: 7, Minor: 1}, 42, volume.SingleNodeWriter, bootID, "vol",
		},
		"device=259:1048575 diskseq=18446744073709551615 mode=MULTI_NODE_READER_ONLY boot=" + bootID + " volume=a b=c volume=\nd": {
			linux.DeviceNumber{Major: 259, Minor: 1048575}, math.MaxUint64, volume.MultiNodeReaderOnly, bootID, "a b=c volume=\nd",
		},
		"device=0:0 diskseq=0 mode=SINGLE_NODE_WRITER boot=" + bootID + " volume=kernel before 5.15": {
			mode: volume.SingleNodeWriter, bootID: bootID, volumeID: "kernel before 5.15",
		},
	} {
		if got := record.String(); got != text {
			t.Errorf("wrote %q, want %q", got, text)
		}
		if got, err := parseStaged(text); err != nil || got != record {
			t.Errorf("%q is read as %+v, %v; want %+v", text, got, err, record)
		}
	}
}

func TestPublicationRecord(t *testing.T) {
	for text, record := range map[string]Publication{
		"mode=SINGLE_NODE_WRITER readonly=false arguments=0123abcd target=/var/lib/kubelet/pod-1": {
			Target: "/var/lib/kubelet/pod-1", Mode: volume.SingleNodeWriter, Arguments: "0123abcd",
		},
		"mode=MULTI_NODE_READER_ONLY readonly=true arguments= target=/with space target=/x\n": {
			Target: "/with space target=/x\n", Mode: volume.MultiNodeReaderOnly, ReadOnly: true,
		},
	} {
		if got := record.String(); got != text {
			t.Errorf("wrote %q, want %q", got, text)
		}
		if got, err := parsePublication(text); err != nil || got != record {
			t.Errorf("%q is read as %+v, %v; want %+v", text, got, err, record)
		}
	}
	if a, b := publicationRecord("/a"), publicationRecord("/b"); a == b || !strings.HasPrefix(a, publicationPrefix) {
		t.Errorf("the records of two targets are called %q and %q", a, b)
	}
}

// A record that cannot be understood is an error, never a volume that is free.
func TestMalformedRecords(t *testing.T) {
	staged := func(text string) error { _, err := parseStaged(text); return err }
	publication := func(text string) error { _, err := parsePublication(text); return err }
	for name, test := range map[string]struct {
		parse func(string) error
		text  string
		says  string
	}{
		"empty":              {staged, "", "expected the keys device, diskseq, mode, boot, volume"},
		"cut short":          {staged, "device=7:1 diskseq=42 mode=SINGLE_NODE_WRITER", "is cut short"},
		"value cut off":      {staged, "device=7:1 diskseq=42 mode=SINGLE_NODE_WRITER boot=b volume=", "is cut short"},
		"another key":        {staged, "device=7:1 disk=42 mode=SINGLE_NODE_WRITER boot=b volume=v", "is malformed"},
		"other order":        {staged, "diskseq=42 device=7:1 mode=SINGLE_NODE_WRITER boot=b volume=v", "is malformed"},
		"two spaces":         {staged, "device=7:1  diskseq=42 mode=SINGLE_NODE_WRITER boot=b volume=v", "is malformed"},
		"no minor":           {staged, "device=7 diskseq=42 mode=SINGLE_NODE_WRITER boot=b volume=v", "invalid syntax"},
		"negative":           {staged, "device=7:-1 diskseq=42 mode=SINGLE_NODE_WRITER boot=b volume=v", "invalid syntax"},
		"three numbers":      {staged, "device=7:1:2 diskseq=42 mode=SINGLE_NODE_WRITER boot=b volume=v", "invalid syntax"},
		"number too large":   {staged, "device=4294967296:1 diskseq=42 mode=SINGLE_NODE_WRITER boot=b volume=v", "out of range"},
		"sequence too large": {staged, "device=7:1 diskseq=18446744073709551616 mode=SINGLE_NODE_WRITER boot=b volume=v", "out of range"},
		"unknown mode":       {staged, "device=7:1 diskseq=42 mode=WRITER boot=b volume=v", `"WRITER"`},
		"nothing published":  {publication, "", "expected the keys mode, readonly, arguments, target"},
		"no target":          {publication, "mode=SINGLE_NODE_WRITER readonly=true arguments=a", "is cut short"},
		"empty target":       {publication, "mode=SINGLE_NODE_WRITER readonly=true arguments=a target=", "is cut short"},
		"no boolean":         {publication, "mode=SINGLE_NODE_WRITER readonly=maybe arguments=a target=/t", `"maybe"`},
		"no mode":            {publication, "mode= readonly=true arguments=a target=/t", "access mode"},
		"record of staging":  {publication, "device=7:1 diskseq=42 mode=SINGLE_NODE_WRITER boot=b volume=v", "is malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.parse(test.text)
			if err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "record ") {
				t.Errorf("got %v; want the record and the words %q", err, test.says)
			}
		})
	}
}

func FuzzParseStaged(f *testing.F) {
	f.Add("device=7:1 diskseq=42 mode=SINGLE_NODE_WRITER boot=" + bootID + " volume=vol")
	f.Add("device=: diskseq= mode= boot= volume=v")
	f.Add("device=7:1")
	f.Fuzz(func(t *testing.T, text string) {
		record, err := parseStaged(text)
		if err != nil {
			return
		}
		if again, err := parseStaged(record.String()); err != nil || again != record {
			t.Errorf("%q is read as %+v, and that as %+v, %v", text, record, again, err)
		}
	})
}

func FuzzParsePublication(f *testing.F) {
	f.Add("mode=SINGLE_NODE_WRITER readonly=false arguments=0123abcd target=/t")
	f.Add("mode=SINGLE_NODE_WRITER readonly=1 arguments= target= ")
	f.Add("mode= readonly= arguments= target=")
	f.Fuzz(func(t *testing.T, text string) {
		record, err := parsePublication(text)
		if err != nil {
			return
		}
		if again, err := parsePublication(record.String()); err != nil || again != record {
			t.Errorf("%q is read as %+v, and that as %+v, %v", text, record, again, err)
		}
	})
}

// A record of loop devices that cannot be read back would leave them behind.
func TestLoopsAreReadBack(t *testing.T) {
	for _, target := range []string{noTarget, "/var/lib/kubelet/a target"} {
		want := loops{linux.DeviceNumber{Major: 7, Minor: 1}, 2, blockdev.LoopID{Minor: 3, Seq: 4}, "boot", target}
		if got, err := parseLoops(want.String()); err != nil || got != want {
			t.Errorf("got %v (%v), want %v", got, err, want)
		}
	}
}
