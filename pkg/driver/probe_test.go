package driver

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/mount-utils"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// The mount table of a plugin's container, as the kernel writes it.
const (
	rootMount    = "500 400 0:50 / / ro,relatime master:1 - overlay overlay rw\n"
	hostDev      = "501 500 0:5 / /dev rw,nosuid master:2 - devtmpfs udev rw,mode=755\n"
	ptsMount     = "502 501 0:22 / /dev/pts rw master:3 - devpts devpts rw\n"
	sharedDir    = "503 500 8:1 /kubelet /var/lib/kubelet rw shared:4 - ext4 /dev/sda1 rw\n"
	slaveDir     = "504 500 8:1 /kubelet /var/lib/kubelet rw master:4 - ext4 /dev/sda1 rw\n"
	privateDir   = "505 500 8:1 /kubelet /var/lib/kubelet rw - ext4 /dev/sda1 rw\n"
	bothDir      = "506 500 8:1 /kubelet /var/lib/kubelet rw shared:5 master:4 - ext4 /dev/sda1 rw\n"
	containerDev = "507 500 0:60 / /dev rw,nosuid - tmpfs tmpfs rw,mode=755\n"
	neighbourDir = "508 500 8:2 / /var/lib/kubelet2 rw shared:6 - ext4 /dev/sdb1 rw\n"
	sharedParent = "509 500 8:1 / /var rw shared:7 - ext4 /dev/sda1 rw\n"
)

func parseMounts(t *testing.T, table string) []mount.MountInfo {
	t.Helper()
	path := t.TempDir() + "/mountinfo"
	must(t, os.WriteFile(path, []byte(table), 0o600))
	mounts, err := mount.ParseMountInfo(path)
	must(t, err)
	return mounts
}

func TestCheckDev(t *testing.T) {
	for name, test := range map[string]struct{ table, says string }{
		"the host's":                {rootMount + hostDev + ptsMount, ""},
		"the runtime's":             {rootMount + containerDev, `/dev is of type "tmpfs", not the host's devtmpfs`},
		"the host's, hidden":        {rootMount + hostDev + containerDev, `"tmpfs"`},
		"the host's over another":   {rootMount + containerDev + hostDev, ""},
		"none":                      {rootMount, `"overlay"`},
		"devtmpfs somewhere else":   {rootMount + strings.Replace(hostDev, " /dev ", " /host/dev ", 1), `"overlay"`},
		"devtmpfs on a longer name": {rootMount + strings.Replace(hostDev, " /dev ", " /device ", 1), `"overlay"`},
	} {
		t.Run(name, func(t *testing.T) {
			wantWords(t, probe{}.checkDev(parseMounts(t, test.table)), test.says)
		})
	}
}

func TestCheckKubeletDir(t *testing.T) {
	const devices = "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices"
	const notShared = devices + " lies on the mount /var/lib/kubelet, which is not shared"
	at := func(mount, point string) string {
		return strings.Replace(mount, " /var/lib/kubelet ", " "+point+" ", 1)
	}
	for name, test := range map[string]struct {
		table string
		host  bool
		says  string
	}{
		"Bidirectional":               {rootMount + sharedDir, false, ""},
		"Bidirectional from a slave":  {rootMount + bothDir, false, ""},
		"HostToContainer":             {rootMount + slaveDir, false, notShared},
		"no propagation":              {rootMount + privateDir, false, notShared + ", so kubelet would not see what is published there: mount this directory of the host at the same path, with mountPropagation: Bidirectional"},
		"private over shared":         {rootMount + sharedDir + privateDir, false, notShared},
		"below a shared mount":        {rootMount + sharedParent, false, ""},
		"private below a shared one":  {rootMount + sharedParent + privateDir, false, notShared},
		"only a neighbour is shared":  {rootMount + neighbourDir, false, "lies on the mount /, which is not shared"},
		"on the host nothing matters": {rootMount + privateDir, true, ""},
		"the part with volumes":       {rootMount + at(sharedDir, devices), false, ""},
		"that part, not shared":       {rootMount + at(slaveDir, devices), false, devices + " lies on the mount " + devices + ", which is not shared"},
		"only another part":           {rootMount + at(sharedDir, "/var/lib/kubelet/plugins/csi.rawblock.dev"), false, devices + " lies on the mount /, which is not shared"},
	} {
		t.Run(name, func(t *testing.T) {
			p := probe{paths: kubeletDir{path: "/var/lib/kubelet", resolved: "/var/lib/kubelet"}, ownNamespace: !test.host}
			wantWords(t, p.checkKubeletDir(parseMounts(t, test.table)), test.says)
		})
	}
}

// The mount that counts is that of the directory itself, not of the link to it.
func TestCheckKubeletDirBehindALink(t *testing.T) {
	p := probe{paths: kubeletDir{path: "/var/lib/kubelet", resolved: "/data/kubelet"}, ownNamespace: true}
	data := strings.Replace(privateDir, "/var/lib/kubelet", "/data", 1)
	wantWords(t, p.checkKubeletDir(parseMounts(t, rootMount+sharedDir+data)), "/data/kubelet/plugins/kubernetes.io/csi/volumeDevices lies on the mount /data")
}

func TestProbeAnswer(t *testing.T) {
	service := identity{probe: func() error { return nil }}
	if _, err := service.Probe(t.Context(), &csi.ProbeRequest{}); err != nil {
		t.Error(err)
	}
	service.probe = func() error { return errors.New("/dev is not the host's") }
	_, err := service.Probe(t.Context(), &csi.ProbeRequest{})
	if !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("got %v, want %v", err, volume.ErrPrecondition)
	}
	wantWords(t, err, "/dev is not the host's")
}

func wantWords(t *testing.T, err error, says string) {
	t.Helper()
	if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("got %v; want the words %q", err, says)
	}
}
