package config_test

import (
	"encoding/json"
	"math"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rawblock-csi/rawblock-csi/pkg/config"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// ignoreLines leaves out where something stood.
var ignoreLines = cmp.Options{
	cmpopts.IgnoreFields(config.Pool{}, "Line"),
	cmpopts.IgnoreFields(config.FilePool{}, "Line"),
	cmpopts.IgnoreFields(config.LVMPool{}, "Line"),
	cmpopts.EquateEmpty(),
}

var hasLine = regexp.MustCompile(`line [1-9][0-9]*`)

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"", "maxVolumes: 1", "maxVolumes: -1", "devices: {allow: [/dev/sd?]}", "devices: {allow: ['/dev/[']}",
		"a: &a [*a]", "---\n---\n", "devices: {allow: [!!binary L2Rldi94]}", "<<: {maxVolumes: 5}", "\xff",
		"pools: [{name: a, file: {directory: /a, capacity: 1.5Gi, overcommit: 2.5}}, {name: b, file: {directory: /b}}]",
		"pools: [{name: a, disk: {match: {transport: nvme, minSize: 1k, maxSize: 4Ti, rotational: false}, layout: whole, wipe: zero}}]",
		"pools: [{name: a, lvm: {volumeGroup: vg0, thinPool: tp0, overcommit: 2}}, {name: b, lvm: {volumeGroup: vg0, wipe: none}}]",
		"pools: [{name: a, disk: {match: {paths: ['/dev/[a]*'], model: 'S*', wwid: x, serial: '?'}, exclude: [{serial: a}]}}]",
		"pools: [{name: a, file: {directory: /a}}, {name: a, file: {directory: /a/b}}]",
		"pools: &a [{name: a, file: &b {directory: /a}}, {name: b, file: *b}]", "!!map {maxVolumes: !!int '1'}",
		"pools: [{name: !!str 5, file: {directory: /a, overcommit: .nan, capacity: 9223372036854775807}}]", "\uFEFF? a\r: b",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		parsed, err := config.Parse(text)
		if err != nil {
			if !reflect.DeepEqual(parsed, config.Config{}) {
				t.Errorf("%+v beside the error %v", parsed, err)
			}
			if !hasLine.MatchString(err.Error()) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q names no line, or is not one line", err)
			}
			return
		}
		checkConfig(t, parsed)
		again, err := config.Parse(render(t, parsed))
		if err != nil {
			t.Fatalf("what was taken is refused: %v\n%s", err, render(t, parsed))
		}
		if diff := cmp.Diff(parsed, again, ignoreLines); diff != "" {
			t.Error(diff)
		}
	})
}

// checkConfig sees that what was taken is what the rooms that use it rely on.
func checkConfig(t *testing.T, parsed config.Config) {
	if parsed.MaxVolumes < 0 {
		t.Errorf("maxVolumes is %d", parsed.MaxVolumes)
	}
	for _, pattern := range parsed.Devices.Patterns() {
		checkPattern(t, pattern)
	}
	names := map[string]bool{}
	for i, pool := range parsed.Pools {
		if names[pool.Name] || !volume.PoolName.MatchString(pool.Name) || (pool.File == nil) == (pool.Disk == nil) {
			t.Errorf("pool %+v beside %v", pool, names)
		}
		names[pool.Name] = true
		if pool.File != nil {
			checkFilePool(t, *pool.File, parsed.Pools[:i])
		} else {
			checkDiskPool(t, *pool.Disk)
		}
	}
}

func checkFilePool(t *testing.T, pool config.FilePool, above []config.Pool) {
	if !filepath.IsAbs(pool.Directory) || filepath.Clean(pool.Directory) != pool.Directory || pool.Directory == "/" {
		t.Errorf("directory %q was taken", pool.Directory)
	}
	if !(pool.Overcommit >= 1) || float64(pool.Capacity)*pool.Overcommit >= math.MaxInt64 {
		t.Errorf("capacity %d * overcommit %v was taken", pool.Capacity, pool.Overcommit)
	}
	for _, other := range above {
		if other.File == nil {
			continue
		}
		for _, pair := range [][2]string{{pool.Directory, other.File.Directory}, {other.File.Directory, pool.Directory}} {
			if way, err := filepath.Rel(pair[0], pair[1]); err != nil || way != ".." && !strings.HasPrefix(way, "../") {
				t.Errorf("%s is not beside %s: %s, %v", pair[0], pair[1], way, err)
			}
		}
	}
}

func checkDiskPool(t *testing.T, pool config.DiskPool) {
	if pool.Layout != "partition" && pool.Layout != "whole" || pool.Wipe != "discard" && pool.Wipe != "zero" && pool.Wipe != "secure" {
		t.Errorf("layout %q, wipe %q were taken", pool.Layout, pool.Wipe)
	}
	for _, match := range append(pool.Exclude, pool.Match) {
		if cmp.Equal(match, config.Match{}, cmpopts.EquateEmpty()) || match.MaxSize != 0 && match.MinSize > match.MaxSize {
			t.Errorf("match %+v was taken", match)
		}
		for _, glob := range []string{match.Model, match.Serial, match.WWID} {
			if _, err := path.Match(glob, ""); err != nil {
				t.Errorf("pattern %q was taken", glob)
			}
		}
		for _, pattern := range match.Paths {
			checkPattern(t, pattern)
		}
	}
}

func checkPattern(t *testing.T, pattern string) {
	if _, err := path.Match(pattern, ""); err != nil || !filepath.IsAbs(pattern) || filepath.Clean(pattern) != pattern {
		t.Errorf("pattern %q was taken (%v)", pattern, err)
	}
}

// render writes a configuration as a file with every key that has a value.
func render(t *testing.T, parsed config.Config) []byte {
	type mapping = map[string]any
	pools := []mapping{}
	for _, pool := range parsed.Pools {
		entry := mapping{"name": pool.Name}
		if pool.File != nil {
			file := mapping{"directory": pool.File.Directory, "overcommit": pool.File.Overcommit}
			if pool.File.Capacity != 0 {
				file["capacity"] = pool.File.Capacity
			}
			entry["file"] = file
		}
		if pool.Disk != nil {
			exclude := []mapping{}
			for _, match := range pool.Disk.Exclude {
				exclude = append(exclude, renderMatch(match))
			}
			entry["disk"] = mapping{
				"match": renderMatch(pool.Disk.Match), "exclude": exclude, "layout": pool.Disk.Layout, "wipe": pool.Disk.Wipe,
			}
		}
		pools = append(pools, entry)
	}
	text, err := json.Marshal(mapping{
		"maxVolumes": parsed.MaxVolumes, "controllerExpansion": parsed.ControllerExpansion,
		"pools": pools, "devices": mapping{"allow": parsed.Devices.Patterns()},
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func renderMatch(match config.Match) map[string]any {
	rendered := map[string]any{}
	for key, text := range map[string]string{
		"transport": match.Transport, "model": match.Model, "serial": match.Serial, "wwid": match.WWID,
	} {
		if text != "" {
			rendered[key] = text
		}
	}
	for key, size := range map[string]uint64{"minSize": match.MinSize, "maxSize": match.MaxSize} {
		if size != 0 {
			rendered[key] = size
		}
	}
	if match.Rotational != nil {
		rendered["rotational"] = *match.Rotational
	}
	if len(match.Paths) > 0 {
		rendered["paths"] = match.Paths
	}
	return rendered
}
