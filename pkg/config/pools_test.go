package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/config"
)

func TestPools(t *testing.T) {
	no := false
	got, err := config.Parse([]byte(`
pools:
- name: files
  file:
    directory: /var/lib/rawblock-csi/files
    capacity: 100Gi
    overcommit: 2.5
- {name: thick, file: {directory: /srv}}
-
  name: nvme
  disk:
    match: {transport: nvme, rotational: false, minSize: 100Gi, maxSize: 4Ti, model: "SAMSUNG*", serial: "S4*", wwid: "eui.*", paths: ["/dev/disk/by-id/nvme-*"]}
    exclude: [{serial: S4ABC}]
    layout: whole
    wipe: secure
- name: 4k
  disk: {match: {transport: sata, minSize: 1Ti, maxSize: 1Ti}}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []config.Pool{
		{Name: "files", Line: 3, File: &config.FilePool{
			Directory: "/var/lib/rawblock-csi/files", Capacity: 100 << 30, Overcommit: 2.5, Line: 5,
		}},
		{Name: "thick", Line: 8, File: &config.FilePool{Directory: "/srv", Overcommit: 1, Line: 8}},
		{Name: "nvme", Line: 10, Disk: &config.DiskPool{
			Match: config.Match{
				Transport: "nvme", Rotational: &no, MinSize: 100 << 30, MaxSize: 4 << 40,
				Model: "SAMSUNG*", Serial: "S4*", WWID: "eui.*", Paths: []string{"/dev/disk/by-id/nvme-*"},
			},
			Exclude: []config.Match{{Serial: "S4ABC"}}, Layout: "whole", Wipe: "secure",
		}},
		{Name: "4k", Line: 16, Disk: &config.DiskPool{Match: config.Match{Transport: "sata", MinSize: 1 << 40, MaxSize: 1 << 40}, Layout: "partition", Wipe: "discard"}},
	}
	if diff := cmp.Diff(want, got.Pools); diff != "" {
		t.Error(diff)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]uint64{
		"1": 1, "107374182400": 100 << 30, `"4096"`: 4096, "1k": 1000, "1Ki": 1024, "100G": 100e9, "100Gi": 100 << 30,
		"1.5Gi": 3 << 29, "0.5Ki": 512, "1.000": 1, "1.001k": 1001, "1E": 1e18, "7Ei": 7 << 60, "9223372036854774784": 1<<63 - 1024,
	} {
		got, err := config.Parse([]byte("pools: [{name: a, file: {directory: /a, capacity: " + text + "}}]"))
		if err != nil || got.Pools[0].File.Capacity != want {
			t.Errorf("%s: got %+v, %v; want %d", text, got.Pools, err, want)
		}
	}
	for _, text := range []string{
		"0", "0Gi", "-1", "+1", "100GB", "100gi", "100GiB", "1K", "1m", "1000m", "1u", "1n", "1e3", "1E3", "1e-2147483647", "1.5", "0.0001k",
		"1.0000000001", "8Ei", "9223372036854775807", "99999999999999999999", "0x10", "0o17", "017", "1_000", ".5Gi", "1.", "100 Gi",
		`" 1"`, `""`, "one", "true", "[1]", "{a: 1}", "!!binary MQ==", "!own 1Gi", "2001-01-01", ".inf", ".nan",
	} {
		got, err := config.Parse([]byte("pools: [{name: a, file: {directory: /a,\n capacity: " + text + "}}]"))
		if err == nil {
			t.Errorf("%s was taken as %d", text, got.Pools[0].File.Capacity)
		} else if !strings.HasPrefix(err.Error(), "line 2: ") || !strings.HasSuffix(err.Error(), "is not a size; expected a whole, positive "+
			"number of bytes, such as 1073741824, 100G (100 * 10^9) or 100Gi (100 * 2^30)") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestPoolsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		pools string
		want  string
	}{
		"unknown key": {
			"- name: a\n  zfs: {}\n",
			`line 3: "zfs" is unknown in a pool; its keys are: name, file, disk, lvm`,
		},
		"no name": {"- file: {directory: /a}\n", "line 2: the pool has no name"},
		"bad name": {
			"- name: Fast\n  file: {directory: /a}\n",
			`line 2: "Fast" is not the name of a pool; expected at most 24 lowercase letters`,
		},
		"number as name": {"- name: 5\n  file: {directory: /a}\n", `line 2: 5 is no text in YAML; write it in quotes: "5"`},
		"no kind":        {"- name: a\n", `line 2: pool "a" must be of one kind; expected one of: file, disk`},
		"two kinds": {
			"- name: a\n  file: {directory: /a}\n  disk: {match: {transport: nvme}}\n",
			`line 2: pool "a" must be of one kind; expected one of: file, disk`,
		},
		"kind without a value": {"- name: a\n  file:\n", `line 3: "file" has no value; give it one or remove it`},
		"null as pool":         {"- ~\n", "line 2: the list has an entry without a value; give it one or remove it"},
		"text as pool":         {"- files\n", `line 2: "files" stands for a pool; expected a mapping with the keys: name, file, disk`},
		"the same name": {
			"- name: a\n  file: {directory: /a}\n- name: b\n  file: {directory: /b}\n- name: a\n  disk: {match: {transport: nvme}}\n",
			`line 6: the name "a" is that of the pool in line 2 already; change one`,
		},
		"no directory":        {"- name: a\n  file: {capacity: 1Gi}\n", "line 3: file has no directory; name the one"},
		"empty directory":     {"- name: a\n  file: {directory: ''}\n", `line 3: "" is not the path of a directory; expected an absolute path`},
		"relative directory":  {"- name: a\n  file:\n    directory: files\n", `line 4: "files" is not the path of a directory`},
		"directory not clean": {"- name: a\n  file: {directory: /a/../b}\n", `line 3: "/a/../b" is not the path of a directory`},
		"root directory":      {"- name: a\n  file: {directory: /}\n", `line 3: "/" is not the path of a directory`},
		"directory with NUL":  {"- name: a\n  file: {directory: \"/a\\0b\"}\n", `line 3: "/a\x00b" is not the path of a directory`},
		"overcommit below 1":  {"- name: a\n  file: {directory: /a, overcommit: 0.99}\n", `line 3: "0.99" is not a factor; expected a number from 1 `},
		"overcommit NaN":      {"- name: a\n  file: {directory: /a, overcommit: .nan}\n", `line 3: ".nan" is not a factor`},
		"overcommit infinite": {"- name: a\n  file: {directory: /a, overcommit: .inf}\n", `line 3: ".inf" is not a factor`},
		"overcommit huge":     {"- name: a\n  file: {directory: /a, overcommit: 1e400}\n", `line 3: "1e400" is not a factor`},
		"overcommit in percent": {
			"- name: a\n  file: {directory: /a, overcommit: 150}\n",
			`line 3: "150" is not a factor; expected a number from 1 (no more than there is) to 100`,
		},
		"overcommit as text":   {"- name: a\n  file: {directory: /a, overcommit: '2'}\n", `line 3: "2" is not a factor`},
		"capacity beyond size": {"- name: a\n  file: {directory: /a, overcommit: 2, capacity: 4Ei}\n", "line 3: capacity * overcommit is 8 EiB or more"},
		"the same directory": {
			"- name: a\n  file: {directory: /a}\n- name: b\n  file:\n    capacity: 1Gi\n    directory: /a\n",
			`line 7: the directory /a of pool "b" overlaps /a of pool "a" in line 3; give each pool a directory beside the others`,
		},
		"a directory below": {"- {name: a, file: {directory: /a/b}}\n- {name: b, file: {directory: /a/b/c/d}}\n", "line 3: the directory /a/b/c/d"},
		"a directory above": {"- {name: a, file: {directory: /a/b}}\n- {name: b, file: {directory: /a}}\n", "line 3: the directory /a "},
		"one error a pool": {
			"- &p {name: a, file: {directory: /a}}\n- *p\n- *p\n",
			`line 2: the name "a" is that of the pool in line 2 already; change one; line 2: the name "a" is that of the pool in line 2 already; change one`,
		},
		"two errors":                 {"- name: A\n- name: B\n", `line 2: "A" is not the name`},
		"two errors, the second one": {"- name: A\n- name: B\n", `; line 3: "B" is not the name`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := config.Parse([]byte("pools:\n" + test.pools))
			if err == nil {
				t.Fatalf("got %+v, want an error", got)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q lacks %q", err, test.want)
			}
		})
	}
}

func TestDirectoriesBesideEachOther(t *testing.T) {
	if _, err := config.Parse([]byte("pools: [{name: a, file: {directory: /a/b}}, {name: b, file: {directory: /a/bc}}, {name: c, file: {directory: /a/c}}]")); err != nil {
		t.Error(err)
	}
}

// A directory that is something else is an error of the file, with its line; one
// that is yet to be made is not.
func TestLoadLooksAtDirectories(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	link := filepath.Join(dir, "link")
	loop := filepath.Join(dir, "loop")
	for _, err := range []error{os.WriteFile(plain, nil, 0o600), os.Symlink(dir, link), os.Symlink(loop, loop)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for directory, want := range map[string]string{
		dir:                             "",
		link:                            "",
		filepath.Join(dir, "new"):       "",
		filepath.Join(dir, "new/newer"): "",
		plain:                           "it is no directory; name one that exists",
		filepath.Join(plain, "below"):   "not a directory; name one that exists",
		loop:                            "too many levels of symbolic links",
		"/dev/null":                     "it is no directory",
	} {
		file := filepath.Join(dir, "config.yaml")
		text := "pools:\n- name: nvme\n  disk: {match: {transport: nvme}}\n- name: a\n  file:\n    directory: " + directory + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := config.Load(file)
		if want == "" {
			if err != nil || got.Pools[1].File.Directory != directory {
				t.Errorf("%s: got %+v, %v", directory, got.Pools, err)
			}
			continue
		}
		start := "configuration " + file + ": line 6: the directory " + directory + ` of pool "a" cannot be used: `
		if err == nil || !strings.HasPrefix(err.Error(), start) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v; want %q", directory, err, want)
		}
	}
}
