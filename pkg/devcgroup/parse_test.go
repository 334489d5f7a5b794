package devcgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func TestParseAccess(t *testing.T) {
	for text, want := range map[string]Access{"": 0, "r": Read, "w": Write, "m": Mknod, "rw": Read | Write, "wr": Read | Write, "rwm": allAccess, "rr": Read} {
		if got, err := ParseAccess(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"x", "rx", "R", " ", "r w", "r\x00", "ř"} {
		if got, err := ParseAccess(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
	for access := range allAccess + 1 {
		if got, err := ParseAccess(access.String()); err != nil || got != access {
			t.Errorf("%v is read as %v, %v", access, got, err)
		}
	}
}

func TestParseRules(t *testing.T) {
	any, seven, three := wildcard{any: true}, wildcard{number: 7}, wildcard{number: 3}
	for text, want := range map[string][]rule{
		"":                       nil,
		"a *:* rwm\n":            {{'a', any, any, allAccess}},
		"b 7:3 rw\nc *:* m\n":    {{'b', seven, three, Read | Write}, {'c', any, any, Mknod}},
		"b 7:* r":                {{'b', seven, any, Read}},
		"b 4294967295:0 r\n":     {{'b', wildcard{number: 1<<32 - 1}, wildcard{}, Read}},
		"b 7:3 rw\nb 7:3 rw\n\n": nil,
	} {
		got, err := parseRules(text)
		if strings.HasSuffix(text, "\n\n") {
			if err == nil {
				t.Errorf("%q is taken", text)
			}
			continue
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(rule{}, wildcard{})); err != nil || diff != "" {
			t.Errorf("%q: %v (-want +got):\n%s", text, err, diff)
		}
	}
	for _, text := range []string{"b", "b 7:3", "b 7:3 rw x", "d 7:3 r", "bc 7:3 r", "b 7 r", "b 7: r", "b :3 r", "b 7:3 x", "b -7:3 r", "b 4294967296:0 r", "b 7:3:1 r", " : :"} {
		if got, err := parseRules(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func TestRuleCovers(t *testing.T) {
	for text, want := range map[string][2]bool{
		"a *:* rwm": {true, false}, "b *:* r": {true, false}, "b 600:* r": {true, false}, "b *:3 r": {true, false}, "b 600:3 m": {true, true},
		"b 600:4 r": {}, "b 601:3 r": {}, "c 600:3 r": {}, "c *:* rwm": {},
	} {
		list, err := parseRules(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]bool{list[0].covers(deviceA), list[0].isOf(deviceA)}; got != want {
			t.Errorf("%q is for device %s, and for no other: %v", text, deviceA, got)
		}
	}
}

func FuzzParseRules(f *testing.F) {
	f.Add("a *:* rwm\n")
	f.Add("b 7:3 rw\nc *:* m\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseRules(text)
		if err != nil {
			return
		}
		for _, one := range list {
			if one.isOf(deviceA) && !one.covers(deviceA) {
				t.Errorf("%q is for the device, and is not", text)
			}
		}
		// What the kernel is told in one line is read again from another.
		if len(list) > 0 && list[0].kind == 'b' && !list[0].major.any && !list[0].minor.any {
			again, err := parseRules(line(linux.DeviceNumber{Major: list[0].major.number, Minor: list[0].minor.number}, list[0].access))
			if list[0].access != 0 && (err != nil || !slices.Equal(again, list[:1])) {
				t.Errorf("%v is read as %v, %v", list[0], again, err)
			}
		}
	})
}

func TestParsePaths(t *testing.T) {
	for text, want := range map[string]paths{
		"":                                    {},
		"0::/\n":                              {unified: "/"},
		"0::/a/b.scope\n":                     {unified: "/a/b.scope"},
		"5:devices:/a\n0::/b\n":               {"/a", "/b"},
		"3:cpu,devices:/a\n2:devicesx:/b\n":   {devices: "/a"},
		"1:name=devices:/a\n0::/b:c\n":        {unified: "/b:c"},
		"9:name=systemd:/\n5:devices:/x\n":    {devices: "/x"},
		"0::/gone (deleted)\n":                {unified: "/gone (deleted)"},
		"5:devices:/a:b\n4:memory:/../up\n":   {devices: "/a:b"},
		"0::/..a/b\n":                         {unified: "/..a/b"},
		"0::/a\n0:cpu:/b\n1::/c\n":            {unified: "/a"},
		"0::" + strings.Repeat("/deep", 1000): {unified: strings.Repeat("/deep", 1000)},
	} {
		if got, err := parsePaths(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"0:\n", "\n", "5:devices", "0::/\nx\n", "0::\n", "0::a\n"} {
		if got, err := parsePaths(text); err == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
	// What lies beyond a cgroup namespace is not to be found.
	for _, text := range []string{"0::/..\n", "0::/../../x\n", "5:devices:/../x\n0::/\n"} {
		if got, err := parsePaths(text); !errors.Is(err, volume.ErrPrecondition) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestChain(t *testing.T) {
	const id = "0123456789abcdef"
	for _, test := range []struct {
		path, id string
		want     []string
	}{
		{"/", "", nil},
		{"", id, nil},
		{"/a", "", []string{"/a"}},
		{"/a/b/c", "", []string{"/a/b/c"}},
		{"/a/b/c", id, []string{"/a/b/c"}},
		{"/docker/" + id, id, []string{"/docker/" + id}},
		{"/docker/" + id + "/init.scope", id, []string{"/docker/" + id, "/docker/" + id + "/init.scope"}},
		{"/a.slice/libpod-" + id + ".scope/container/x", id, []string{"/a.slice/libpod-" + id + ".scope", "/a.slice/libpod-" + id + ".scope/container", "/a.slice/libpod-" + id + ".scope/container/x"}},
		{"/crio-" + id + ".scope/crio-" + id + ".scope", id, []string{"/crio-" + id + ".scope", "/crio-" + id + ".scope/crio-" + id + ".scope"}},
		{"/docker/another/docker/" + id, id, []string{"/docker/another/docker/" + id}},
	} {
		if diff := cmp.Diff(test.want, chain(test.path, test.id)); diff != "" {
			t.Errorf("%s of %q (-want +got):\n%s", test.path, test.id, diff)
		}
	}
}

func FuzzParsePaths(f *testing.F) {
	f.Add("5:devices:/docker/0123\n0::/\n", "0123")
	f.Add("0::/../x\n", "")
	f.Fuzz(func(t *testing.T, text, id string) {
		found, err := parsePaths(text)
		if err != nil {
			return
		}
		for _, path := range []string{found.devices, found.unified} {
			for _, one := range chain(path, id) {
				if one == "/" || !strings.HasPrefix(path, one) && filepath.Clean(path) == path {
					t.Errorf("%q is not above %q", one, path)
				}
			}
		}
	})
}

func TestParseEntry(t *testing.T) {
	type entry struct {
		Access Access
		Owner  string
	}
	for text, want := range map[string]entry{
		"rw node-1": {Read | Write, "node-1"}, "r ": {Read, ""}, "rwm": {allAccess, ""}, "r a b c": {Read, "a b c"}, "": {},
	} {
		access, owner, err := parseEntry(text)
		if got := (entry{access, owner}); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"x node", "node rw", "rw\tnode"} {
		if access, owner, err := parseEntry(text); err == nil {
			t.Errorf("%q is taken for %v of %q", text, access, owner)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add("rw node-1")
	f.Fuzz(func(t *testing.T, text string) {
		access, owner, err := parseEntry(text)
		if err != nil {
			return
		}
		again, its, err := parseEntry(access.String() + " " + owner)
		if err != nil || again != access || its != owner {
			t.Errorf("%q is %v of %q, and then %v of %q, %v", text, access, owner, again, its, err)
		}
	})
}

func TestUnitOf(t *testing.T) {
	for path, want := range map[string][2]string{
		"/system.slice/docker-0123.scope":         {"docker-0123.scope", "Scope"},
		"/system.slice/containerd.service":        {"containerd.service", "Service"},
		"/system.slice/_cpu.service":              {"cpu.service", "Service"},
		`/kubepods.slice/kubepods-pod\x2d1.slice`: {},
		"/a.scope/container":                      {},
		"/a.scope/b.service":                      {"b.service", "Service"},
		"/":                                       {},
		"":                                        {},
	} {
		name, kind, ok := unitOf(path)
		if !ok {
			name = ""
		}
		if got := [2]string{name, kind}; got != want || ok != (kind != "") {
			t.Errorf("%s is the cgroup of %v, %t", path, got, ok)
		}
	}
}

func TestParseDeviceAllow(t *testing.T) {
	for name, test := range map[string]struct {
		value any
		want  []deviceRule
	}{
		"nothing": {[][]any{}, nil},
		"rules":   {[][]any{{"/dev/block/7:3", "rw"}, {"char-pts", "rwm"}}, []deviceRule{{"/dev/block/7:3", "rw"}, {"char-pts", "rwm"}}},
	} {
		got, err := parseDeviceAllow(test.value)
		if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	for _, value := range []any{"text", []string{"a"}, [][]any{{"a"}}, [][]any{{"a", "b", "c"}}, [][]any{{"a", 1}}, [][]any{{1, "a"}}, 7, nil} {
		if got, err := parseDeviceAllow(value); err == nil {
			t.Errorf("%v is taken for %v", value, got)
		}
	}
}

func TestReadPaths(t *testing.T) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	want, err := parsePaths(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readPaths(os.Getpid()); err != nil || got != want {
		t.Errorf("the test is in %+v, %v; want %+v", got, err, want)
	}
	if _, err := readPaths(1 << 22); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("of no process: %v", err)
	}
	if _, err := Open(Hierarchies{}, os.Getpid(), ""); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("without any cgroups: %v", err)
	}
	if _, err := Open(Hierarchies{Unified: t.TempDir()}, 1<<22, ""); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("of no process: %v", err)
	}
	if got := fmt.Sprint(&Cgroup{}); got != "no cgroup" {
		t.Errorf("no cgroup is called %q", got)
	}
}
