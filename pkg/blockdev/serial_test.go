package blockdev_test

import (
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
)

func TestParseUnitSerial(t *testing.T) {
	for name, test := range map[string]struct {
		page, want, fails string
	}{
		"usual":         {"\x00\x80\x00\x06ZA1234", "ZA1234", ""},
		"padded":        {"\x00\x80\x00\x08  ZA1234", "ZA1234", ""},
		"zeros":         {"\x00\x80\x00\x08ZA1234\x00\x00", "ZA1234", ""},
		"longer page":   {"\x00\x80\x00\x02ZA1234", "ZA", ""},
		"inner space":   {"\x00\x80\x00\x03A B", "A B", ""},
		"no serial":     {"\x00\x80\x00\x00", "", "states none"},
		"spaces only":   {"\x00\x80\x00\x02  ", "", "states none"},
		"empty":         {"", "", "of 0 bytes is malformed"},
		"cut header":    {"\x00\x80\x00", "", "of 3 bytes is malformed"},
		"another page":  {"\x00\x83\x00\x02AB", "", "is malformed"},
		"cut serial":    {"\x00\x80\x00\x06ZA12", "", "promises a serial number of 6"},
		"length of 256": {"\x00\x80\x01\x00ZA", "", "promises a serial number of 256"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := blockdev.ParseUnitSerial([]byte(test.page))
			if got != test.want || (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) {
				t.Errorf("got %q, %v; want %q, %q", got, err, test.want, test.fails)
			}
		})
	}
}

func FuzzParseUnitSerial(f *testing.F) {
	for _, page := range []string{"\x00\x80\x00\x06ZA1234", "\x00\x80\xff\xffZA", "\x00\x80\x00", ""} {
		f.Add([]byte(page))
	}
	f.Fuzz(func(t *testing.T, page []byte) {
		serial, err := blockdev.ParseUnitSerial(page)
		if (serial == "") == (err == nil) || serial != strings.Trim(serial, " \x00") {
			t.Errorf("got %q, %v", serial, err)
		}
		if !strings.Contains(string(page), serial) {
			t.Errorf("%q does not stand in the page", serial)
		}
	})
}
