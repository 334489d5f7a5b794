package driver

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func TestKubeletDir(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/real", 0o700))
	must(t, os.Symlink("real", dir+"/link"))
	paths, err := newKubeletDir(dir + "/link/")
	must(t, err)
	for path, says := range map[string]string{
		dir + "/link/pods/x":          "",
		dir + "/real/pods/x":          "",
		dir + "/link/..data":          "",
		"":                            "target_path is missing",
		"pods/x":                      "is not an absolute path",
		dir + "/link":                 "is not below the kubelet directory",
		dir + "/linked":               "is not below the kubelet directory " + dir + "/link; set --kubelet-dir",
		dir + "/other/x":              "is not below",
		"/etc/passwd":                 "is not below",
		"/":                           "is not below",
		dir + "/link/../other/x":      "send the clean path",
		dir + "/link/pods/..":         "send the clean path",
		dir + "/link/./pods":          "send the clean path",
		dir + "/link//pods":           "send the clean path",
		dir + "/link/pods/":           "send the clean path",
		dir + "/link/pods/../../../x": "send the clean path",
	} {
		err := paths.check("target_path", path)
		if (err == nil) != (says == "") || err != nil && (!errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: got %v; want %v and the words %q", path, err, volume.ErrInvalid, says)
		}
	}
	if root, err := newKubeletDir("/"); err != nil || root.check("target_path", "/pods") != nil {
		t.Errorf("below the root: %v, %v", err, root.check("target_path", "/pods"))
	}
}

// In a container that has only a part of kubelet's directory, a path beside that is the
// container's own: it is refused, also to who would have a volume taken away there.
func TestPathsOutsideOfTheMounts(t *testing.T) {
	const devices = "/kubelet/plugins/kubernetes.io/csi/volumeDevices"
	const beside = " is not below /data" + devices + ", which is all that the plugin's container has of the kubelet directory"
	at := func(point string) string { return strings.Replace(sharedDir, " /var/lib/kubelet ", " "+point+" ", 1) }
	for name, test := range map[string]struct{ table, path, says string }{
		"in the part":               {at("/data" + devices), "/data" + devices + "/publish/pv/uid", ""},
		"in the part, by a link":    {at("/data" + devices), "/link" + devices + "/staging/pv", ""},
		"the part itself":           {at("/data" + devices), "/data" + devices, beside},
		"beside":                    {at("/data" + devices), "/data/kubelet/pods/uid", `target_path "/data/kubelet/pods/uid"` + beside},
		"beside, by a link":         {at("/data" + devices), "/link/kubelet/plugins/csi.rawblock.dev/x", beside},
		"a longer name":             {at("/data" + devices), "/data" + devices + "-x/pv", beside},
		"a larger part":             {at("/data/kubelet/plugins"), "/data/kubelet/plugins/x", ""},
		"all":                       {at("/data/kubelet"), "/data/kubelet/pods/uid", ""},
		"more than all":             {at("/data"), "/link/kubelet/pods/uid", ""},
		"on the root, as on a host": {rootMount, "/data/kubelet/pods/uid", ""},
		"only another part":         {at("/data/kubelet/plugins_registry"), "/data/kubelet/pods/uid", ""},
	} {
		paths := kubeletDir{path: "/link/kubelet", resolved: "/data/kubelet"}
		paths.narrow(parseMounts(t, rootMount+test.table))
		err := paths.check("target_path", test.path)
		if (err == nil) != (test.says == "") || err != nil && (!errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%s: got %v; want %v and the words %q", name, err, volume.ErrPrecondition, test.says)
		}
	}
}

func TestNewKubeletDirRefuses(t *testing.T) {
	for _, path := range []string{"", "var/lib/kubelet", "./kubelet"} {
		if _, err := newKubeletDir(path); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%q: got %v, want %v", path, err, volume.ErrInvalid)
		}
	}
	if _, err := newKubeletDir(t.TempDir() + "/missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing directory: %v, want %v", err, os.ErrNotExist)
	}
}

func TestHashArguments(t *testing.T) {
	type contexts []map[string]string
	base := contexts{{"device": "/dev/x", "size": "8Mi"}, {"z": "1"}}
	for name, test := range map[string]struct {
		contexts contexts
		same     bool
	}{
		"again":                      {contexts{{"size": "8Mi", "device": "/dev/x"}, {"z": "1"}}, true},
		"kubelet's keys":             {contexts{{"size": "8Mi", "device": "/dev/x", "csi.storage.k8s.io/pod.name": "x"}, {"z": "1", "csi.storage.k8s.io/serviceAccount.tokens": "t"}}, true},
		"another value":              {contexts{{"size": "9Mi", "device": "/dev/x"}, {"z": "1"}}, false},
		"another key":                {contexts{{"Size": "8Mi", "device": "/dev/x"}, {"z": "1"}}, false},
		"one less":                   {contexts{{"device": "/dev/x"}, {"z": "1"}}, false},
		"one more":                   {contexts{{"size": "8Mi", "device": "/dev/x", "wwid": ""}, {"z": "1"}}, false},
		"moved to the other context": {contexts{{"device": "/dev/x"}, {"z": "1", "size": "8Mi"}}, false},
		"contexts swapped":           {contexts{{"z": "1"}, {"device": "/dev/x", "size": "8Mi"}}, false},
		"looks like two lines":       {contexts{{"device": "/dev/x\nsize=8Mi"}, {"z": "1"}}, false},
		"looks like two in quotes":   {contexts{{"device": "/dev/x\"\n\"size\"=\"8Mi"}, {"z": "1"}}, false},
		"key of another driver":      {contexts{{"size": "8Mi", "device": "/dev/x", "csi.storage.k8s.iox": "x"}, {"z": "1"}}, false},
		"nothing":                    {contexts{nil, nil}, false},
	} {
		if same := hashArguments(test.contexts...) == hashArguments(base...); same != test.same {
			t.Errorf("%s: same as the first: %t, want %t", name, same, test.same)
		}
	}
	if hashArguments(nil, nil) != hashArguments(map[string]string{}, map[string]string{}) {
		t.Error("a missing context differs from an empty one")
	}
}

func TestParseCapability(t *testing.T) {
	block := func(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
		return &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		}
	}
	// Whatever the specification has, but UNKNOWN, is known here.
	for number, name := range csi.VolumeCapability_AccessMode_Mode_name {
		mode, err := parseCapability(block(csi.VolumeCapability_AccessMode_Mode(number)))
		if name == "UNKNOWN" {
			if !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("%s: got %q, %v", name, mode, err)
			}
		} else if err != nil || string(mode) != name {
			t.Errorf("%s: got %q, %v", name, mode, err)
		}
	}
	mounted := block(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)
	mounted.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}
	typeless, modeless := block(1), block(1)
	typeless.AccessType, modeless.AccessMode = nil, nil
	for name, test := range map[string]struct {
		capability *csi.VolumeCapability
		want       error
		says       string
	}{
		"none":           {nil, volume.ErrInvalid, "volume_capability is missing"},
		"no access type": {typeless, volume.ErrInvalid, "has no access_type"},
		"no access mode": {modeless, volume.ErrInvalid, "access mode"},
		"future mode":    {block(99), volume.ErrInvalid, `"99"`},
		"filesystem":     {mounted, volume.ErrPrecondition, "set volumeMode: Block"},
	} {
		if _, err := parseCapability(test.capability); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v; want %v and the words %q", name, err, test.want, test.says)
		}
	}
}
