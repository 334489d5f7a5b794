package lvm_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func readReport(t testing.TB) string {
	t.Helper()
	// As lvm 2.03.16 reports what test/vm/lvm's TestReport makes, with a disk missing.
	text, err := os.ReadFile("testdata/report.json")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestParseReport(t *testing.T) {
	programs := &answers{answers: []answer{{stdout: readReport(t)}}}
	got, err := lvm.New(programs, devices).Report(t.Context(), "vg-1")
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	want := lvm.Group{
		Name: "vg-1", UUID: "aP9NMj-5nQC-3FXa-uS25-Rf4K-nUDb-dBK81W", ExtentSize: mib, Size: 62 * mib, Free: 12 * mib,
		Missing: []string{"u3Rc4b-RGjN-26dB-i7lj-T7Fp-1RtW-N093wP"},
		Volumes: []lvm.Volume{
			{Name: "thick", UUID: uuid, Size: 8 * mib, Tags: []string{"a=1", "b/c"}, Partial: true, Extents: []string{"/dev/sda:0-3", "[unknown]:0-3"}},
			{
				Name: "tp", UUID: "H8lXS7-1Pyv-P4AJ-hznA-Gis0-XfWJ-u31G7N", Size: 16 * mib, Extents: []string{"tp_tdata:0-15"},
				Thin: &lvm.ThinPool{ChunkSize: 128 << 10, MetadataSize: 4 * mib, Zero: true, Active: true, Metadata: 10.84},
			},
			{Name: "thin", UUID: "Yd3rZa-0AbC-1dEf-2gHi-3jKl-4mNo-5pQr6s", Size: 32 * mib, Tags: []string{"c"}, Pool: "tp"},
		},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the report (-want +got):\n%s", diff)
	}
	if !strings.HasSuffix(programs.calls[0], " vg-1") || !strings.HasPrefix(programs.calls[0], "lvm fullreport --devices /dev/sda,/dev/sdb1 --config ") {
		t.Errorf("ran %q", programs.calls)
	}
}

func TestReportIsRefused(t *testing.T) {
	whole := readReport(t)
	for name, text := range map[string]string{
		"nothing":           "",
		"no JSON":           whole[:len(whole)-10],
		"no part":           `{"report": []}`,
		"no group":          `{"report": [{"vg": []}]}`,
		"two parts":         strings.Replace(whole, `"report": [`, `"report": [{},`, 1),
		"a field missing":   strings.ReplaceAll(whole, `"lv_size"`, `"size"`),
		"size with a unit":  strings.Replace(whole, `"lv_size":"8388608"`, `"lv_size":"8388608B"`, 1),
		"no extents":        strings.Replace(whole, `"vg_extent_size":"1048576"`, `"vg_extent_size":"0"`, 1),
		"UUID of others":    strings.Replace(whole, `"vg_uuid":"`, `"vg_uuid":"x`, 1),
		"flag in words":     strings.Replace(whole, `"pv_missing":"0"`, `"pv_missing":""`, 1),
		"percent above 100": strings.Replace(whole, `"data_percent":"0.00"`, `"data_percent":"100.01"`, 1),
		"percent NaN":       strings.Replace(whole, `"data_percent":"0.00"`, `"data_percent":"NaN"`, 1),
	} {
		if text == whole {
			t.Errorf("%s: the report has no such text", name)
		}
		if got, err := lvm.ParseReport([]byte(text)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// What is read of any text are names and numbers that can be used.
func FuzzParseReport(f *testing.F) {
	whole := readReport(f)
	for _, text := range []string{whole, `{"report": [{"vg": [{}]}]}`, `{"report": [{"vg": [], "lv": null}]}`, `{"report": 1}`, strings.ReplaceAll(whole, "1", "-1")} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		group, err := lvm.ParseReport(text)
		if err != nil {
			return
		}
		if group.ExtentSize == 0 {
			t.Errorf("extents of %d bytes", group.ExtentSize)
		}
		for _, v := range group.Volumes {
			if v.Thin != nil && v.Thin.Active && (v.Thin.ChunkSize == 0 || !(v.Thin.Data >= 0 && v.Thin.Data <= 100) || !(v.Thin.Metadata >= 0 && v.Thin.Metadata <= 100)) {
				t.Errorf("%+v", v.Thin)
			}
			// A change of it can be asked for.
			if err := lvm.New(&answers{}, devices).Remove(t.Context(), "vg", v.UUID); err != nil {
				t.Errorf("%q: %v", v.UUID, volume.ErrInvalid)
			}
		}
	})
}
