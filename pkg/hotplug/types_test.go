package hotplug

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func TestRequestCheck(t *testing.T) {
	good := Request{Device: "/dev/sdb", Target: Target{PID: 1}, Path: "/dev/xvdb"}
	for name, test := range map[string]struct {
		change func(*Request)
		says   string
	}{
		"good":              {func(*Request) {}, ""},
		"a volume":          {func(r *Request) { r.Device, r.Volume = "", "files/a@node" }, ""},
		"a container":       {func(r *Request) { r.Target = Target{Container: "abc"} }, ""},
		"a pod":             {func(r *Request) { r.Target = Target{Pod: &Pod{Namespace: "default", Name: "db-0"}} }, ""},
		"no device":         {func(r *Request) { r.Device = "" }, `device is "" and volume is ""; set one of them`},
		"device and volume": {func(r *Request) { r.Volume = "v" }, `device is "/dev/sdb" and volume is "v"; set one of them`},
		"relative device":   {func(r *Request) { r.Device = "sdb" }, `device is "sdb"; expected an absolute path`},
		"no target":         {func(r *Request) { r.Target = Target{} }, "target names 0 containers"},
		"two targets":       {func(r *Request) { r.Target.Container = "abc" }, "target names 2 containers"},
		"negative process":  {func(r *Request) { r.Target.PID = -1 }, "target.pid is -1"},
		"restored process":  {func(r *Request) { r.Restore = true }, "restore is set, but target.pid"},
		"half a pod":        {func(r *Request) { r.Target = Target{Pod: &Pod{Name: "db-0"}} }, "expected a namespace and a name"},
		"relative path":     {func(r *Request) { r.Path = "dev/xvdb" }, `path is "dev/xvdb"`},
		"no path":           {func(r *Request) { r.Path = "" }, `path is ""`},
		"root":              {func(r *Request) { r.Path = "/" }, `path is "/"`},
		"directory":         {func(r *Request) { r.Path = "/dev/" }, `path is "/dev/"`},
		"path with ..":      {func(r *Request) { r.Path = "/dev/../etc/passwd" }, "expected a plain absolute path"},
		"path with a line":  {func(r *Request) { r.Path = "/dev/a\nb" }, "control characters"},
		"long path":         {func(r *Request) { r.Path = "/" + strings.Repeat("a", 4095) }, "expected a plain absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			request := good
			test.change(&request)
			err := request.Check()
			if (err == nil) != (test.says == "") || err != nil && (!errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("got %v; want the words %q", err, test.says)
			}
		})
	}
}

func TestParseAnnotation(t *testing.T) {
	for text, want := range map[string]struct {
		pod      Pod
		path     string
		readOnly bool
	}{
		"db-0/postgres:/dev/xvdb":        {Pod{"default", "db-0", "", "postgres"}, "/dev/xvdb", false},
		"db-0/postgres:/dev/xvdb:ro":     {Pod{"default", "db-0", "", "postgres"}, "/dev/xvdb", true},
		"db-0/postgres@1-2-3:/dev/xvdb":  {Pod{"default", "db-0", "1-2-3", "postgres"}, "/dev/xvdb", false},
		"db-0/postgres@1-2:/dev/xvdb:ro": {Pod{"default", "db-0", "1-2", "postgres"}, "/dev/xvdb", true},
		"a.b/c:/data/with:colon":         {Pod{"default", "a.b", "", "c"}, "/data/with:colon", false},
	} {
		target, path, readOnly, err := parseAnnotation("default", text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want.pod, *target.Pod); diff != "" || path != want.path || readOnly != want.readOnly {
			t.Errorf("%s: path %s, read-only %t, pod %s", text, path, readOnly, diff)
		}
	}
	for _, text := range []string{
		"", ":", "/:", "db-0", "db-0:/dev/xvdb", "db-0/:/dev/xvdb", "/postgres:/dev/xvdb", "db-0/postgres", "db-0/postgres:",
		"db-0/postgres:dev/xvdb", "db-0/postgres@:/dev/xvdb", "ns/db-0/postgres:/dev/xvdb", "db-0/postgres:/dev/../x",
		"db-0/postgres@a@b:/dev/xvdb",
	} {
		if target, path, readOnly, err := parseAnnotation("default", text); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%q is taken: %v %s %t, %v", text, target, path, readOnly, err)
		}
	}
}

func FuzzParseAnnotation(f *testing.F) {
	f.Add("db-0/postgres@1-2-3:/dev/xvdb:ro")
	f.Fuzz(func(t *testing.T, text string) {
		target, path, readOnly, err := parseAnnotation("default", text)
		if err != nil {
			return
		}
		again := target.Pod.Name + "/" + target.Pod.Container
		if target.Pod.UID != "" {
			again += "@" + target.Pod.UID
		}
		again += ":" + path
		if readOnly {
			again += ":ro"
		}
		if again != text {
			t.Errorf("%q is read as %q", text, again)
		}
		if err := (Request{Volume: "v", Target: target, Path: path}).Check(); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	})
}
