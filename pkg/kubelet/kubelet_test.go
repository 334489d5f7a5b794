package kubelet_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/kubelet"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// write makes the files, and the directories with a slash at the end.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			rig.Must(t, os.MkdirAll(path, 0o755))
			continue
		}
		rig.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		rig.Must(t, os.WriteFile(path, []byte(content), 0o600))
	}
}

const devices = "plugins/kubernetes.io/csi/volumeDevices/"

// What kubelet has is read from its directories and from the mount table, also by a link to
// its directory.
func TestVolumes(t *testing.T) {
	dir, disk := rig.KubeletDir(t), rig.NewDisk(t, rig.MiB)
	write(t, dir, map[string]string{
		"pods/uid-1/volumeDevices/kubernetes.io~csi/": "", devices + "staging/pv-1/": "",
		devices + "pv-1/data/vol_data.json": `{"driverName":"a.driver","volumeHandle":"handle-1","specVolID":"pv-1"}`,
		devices + "publish/pv-1/uid-1":      "", devices + "pv-1/dev/uid-1": "", devices + "publish/pv-1/uid-2": "left", devices + "publish/pv-2/uid-3": "",
	})
	target, mapping := filepath.Join(dir, devices, "publish/pv-1/uid-1"), filepath.Join(dir, devices, "pv-1/dev/uid-1")
	rig.Must(t, unix.Mount(disk.Path, target, "", unix.MS_BIND, ""))
	rig.Must(t, unix.Mount(target, mapping, "", unix.MS_BIND, ""))
	link := filepath.Join(dir, "pods/uid-1/volumeDevices/kubernetes.io~csi/pv-1")
	rig.Must(t, os.Symlink(target, link))
	elsewhere := filepath.Join(t.TempDir(), "kubelet")
	rig.Must(t, os.Symlink(dir, elsewhere))

	for _, path := range []string{dir, elsewhere} {
		got, err := kubelet.Volumes(path)
		rig.Must(t, err)
		mounts := []string{}
		for i := range got {
			for j := range got[i].Uses {
				mounts = append(append(mounts, got[i].Uses[j].Target.Mounts...), got[i].Uses[j].Map.Mounts...)
				got[i].Uses[j].Target.Mounts, got[i].Uses[j].Map.Mounts = nil, nil
			}
		}
		want := []kubelet.Volume{
			{Name: "pv-1", Driver: "a.driver", ID: "handle-1", Uses: []kubelet.Use{
				{
					Pod: "uid-1", State: kubelet.PodThere, Link: link,
					Target: kubelet.Place{Path: target, Exists: true, Shows: disk.Number(), IsDevice: true},
					Map:    kubelet.Place{Path: mapping, Exists: true, Shows: disk.Number(), IsDevice: true},
				},
				{Pod: "uid-2", State: kubelet.PodGone, Target: kubelet.Place{Path: filepath.Join(dir, devices, "publish/pv-1/uid-2"), Exists: true}, Map: kubelet.Place{Path: filepath.Join(dir, devices, "pv-1/dev/uid-2")}},
			}},
			{Name: "pv-2", Uses: []kubelet.Use{
				{Pod: "uid-3", State: kubelet.PodGone, Target: kubelet.Place{Path: filepath.Join(dir, devices, "publish/pv-2/uid-3"), Exists: true, Empty: true}, Map: kubelet.Place{Path: filepath.Join(dir, devices, "pv-2/dev/uid-3")}},
			}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
		if len(mounts) != 2 || mounts[0] != mounts[1] || !strings.HasSuffix(mounts[0], "/"+filepath.Base(disk.Path)) {
			t.Errorf("the mounts are %q", mounts)
		}
	}
}

// The plugin's container does not see the pods. Of a volume all else is told, and not that
// its pod is gone.
func TestPodsThatCannotBeSeen(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{devices + "publish/pv-1/uid-1": ""})
	got, err := kubelet.Volumes(dir)
	if err != nil || len(got) != 1 || got[0].Uses[0].State != kubelet.PodUnseen || !got[0].Uses[0].Target.Exists {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestNotKubelet(t *testing.T) {
	dir := t.TempDir()
	if _, err := kubelet.Volumes(dir); !errors.Is(err, kubelet.ErrNotKubelet) {
		t.Errorf("a directory without pods and volumes: %v", err)
	}
	write(t, dir, map[string]string{"pods/": ""})
	if got, err := kubelet.Volumes(dir); err != nil || len(got) != 0 {
		t.Errorf("without volumes: %v, %v", got, err)
	}
	write(t, dir, map[string]string{devices + "pv-1/data/vol_data.json": `{"driverName":`})
	if _, err := kubelet.Volumes(dir); err == nil || !strings.Contains(err.Error(), "volume pv-1: its note") {
		t.Errorf("with a note that is cut off: %v", err)
	}
	if _, err := kubelet.Volumes(dir + "/none"); err == nil {
		t.Error("a directory that does not exist is no error")
	}
}
