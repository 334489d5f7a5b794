package gpt_test

import (
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/gpt"
)

func TestGUID(t *testing.T) {
	const text = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	// The bytes that UEFI has on the disk.
	if want := "\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4"; string(linuxType[:]) != want {
		t.Errorf("got % x, want % x", linuxType[:], want)
	}
	if got := linuxType.String(); got != text {
		t.Errorf("got %s, want %s", got, text)
	}
	// It is on disks: it must never become another.
	if got := gpt.HashGUID("fast/pvc-1").String(); got != "4A5BC99A-EA36-85B4-B150-A7F12151C6F6" {
		t.Errorf("the hash is %s", got)
	}
	if first, second := gpt.NewGUID(), gpt.NewGUID(); first == second || gpt.HashGUID("x") == gpt.HashGUID("y") {
		t.Error("GUIDs are the same")
	}
	for id, version := range map[gpt.GUID]byte{gpt.HashGUID("x"): '8', gpt.NewGUID(): '4'} {
		if s := id.String(); s[14] != version || !strings.Contains("89AB", s[19:20]) {
			t.Errorf("%s is not of version %c of RFC 9562", s, version)
		}
	}
	for _, bad := range []string{"", text[1:], text + "0", strings.ReplaceAll(text, "-", ""), "G" + text[1:]} {
		if _, err := gpt.ParseGUID(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
