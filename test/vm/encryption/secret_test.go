package encryption_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// A volume whose key was changed in its secret takes over the new one when it is
// staged, and the old one opens it no more.
func TestRotation(t *testing.T) {
	n := newNode(t, newFiles(t, "ext4"))
	ctx := rig.Context(t)
	v := n.create(t, request(name))
	target := v.use(t, "pod")
	write(t, target, plaintext, 0)
	v.drop(t, target)
	before, after := n.key, newKey(t)
	v.secrets = map[string]string{driver.KeySecret: after, driver.PreviousKeySecret: newKey(t)}
	wantCode(t, v.stage(ctx), codes.FailedPrecondition, "none of the keys given (2)")
	v.secrets[driver.PreviousKeySecret] = before
	for range 2 {
		target = v.use(t, "pod")
		wantData(t, target, plaintext, 0)
		v.drop(t, target)
	}
	delete(v.secrets, driver.PreviousKeySecret)
	target = v.use(t, "pod")
	wantData(t, target, plaintext, 0)
	v.drop(t, target)
	v.secrets = map[string]string{driver.KeySecret: before}
	wantCode(t, v.stage(ctx), codes.FailedPrecondition, "none of the keys")

	// And by hand, while a pod uses it.
	v.secrets = map[string]string{driver.KeySecret: after}
	target = v.use(t, "pod")
	files := []string{filepath.Join(t.TempDir(), "old"), filepath.Join(t.TempDir(), "new")}
	newest := newKey(t)
	rig.Must(t, os.WriteFile(files[0], []byte(after), 0o600))
	rig.Must(t, os.WriteFile(files[1], []byte(newest), 0o600))
	run(t, "", "cryptsetup", "luksChangeKey", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--key-file", files[0], v.rawPath(t), files[1])
	wantData(t, target, plaintext, 0)
	v.drop(t, target)
	v.secrets = map[string]string{driver.KeySecret: newest}
	wantData(t, v.use(t, "pod"), plaintext, 0)
}

// The key is in a file of the node, which a StorageClass names.
func TestKeyOfTheNode(t *testing.T) {
	n := newNode(t, newFiles(t, "ext4"))
	ctx := rig.Context(t)
	req := request(name)
	req.Parameters[driver.KeyParameter] = "tenant-1"
	_, err := n.CreateVolume(ctx, req)
	wantCode(t, err, codes.ResourceExhausted, "tenant-1")
	key := filepath.Join(n.keys, "tenant-1")
	rig.Must(t, os.WriteFile(key, []byte(n.key), 0o400))
	v := n.create(t, req)
	if got := v.Context; got[driver.KeyParameter] != "tenant-1" || got[driver.EncryptionParameter] != "luks2" {
		t.Errorf("its attributes are %v", got)
	}
	wantCode(t, v.stage(ctx), codes.InvalidArgument, "two encryption keys")
	v.secrets = nil
	target := v.use(t, "pod")
	write(t, target, plaintext, 0)
	v.drop(t, target)
	rig.Must(t, os.Rename(key, key+".previous"))
	wantCode(t, v.stage(ctx), codes.FailedPrecondition, "tenant-1")
	rig.Must(t, os.WriteFile(key, []byte(newKey(t)), 0o400))
	target = v.use(t, "pod")
	wantData(t, target, plaintext, 0)
	v.drop(t, target)
	rig.Must(t, os.Remove(key+".previous"))
	wantData(t, v.use(t, "pod"), plaintext, 0)
}

// The key is on no command line, in no environment, log or file.
func TestKeysAreSecret(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace")
	replace(t, "cryptsetup", `for a in "$@"; do echo "$a"; done >>`+trace+`; tr '\0' '\n' </proc/$$/environ >>`+trace)
	n := newNode(t, newFiles(t, "ext4"))
	log := n.startWithLog(t)
	v := n.create(t, request(name))
	target := v.use(t, "pod")
	_, err := n.NodeExpandVolume(rig.Context(t), &csi.NodeExpandVolumeRequest{
		VolumeId: v.ID, VolumePath: target, CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * size}, Secrets: v.secrets,
	})
	rig.Must(t, err)
	v.drop(t, target)
	previous := n.key
	n.key = newKey(t)
	v.secrets = map[string]string{driver.KeySecret: n.key, driver.PreviousKeySecret: previous}
	v.drop(t, v.use(t, "pod"))
	v.secrets = map[string]string{driver.KeySecret: newKey(t)}
	if err := v.stage(rig.Context(t)); err == nil || strings.Contains(err.Error(), v.secrets[driver.KeySecret]) {
		t.Errorf("the wrong key: %v", err)
	}
	keys := []string{n.key, previous, v.secrets[driver.KeySecret]}
	for what, text := range map[string]string{"command lines": readFile(t, trace), "the log": log(), "the raw device": string(v.content(t))} {
		if !strings.Contains(text, "luks") && !strings.Contains(text, "LUKS") {
			t.Errorf("%s: nothing was seen of what was done", what)
		}
		for _, key := range keys {
			if strings.Contains(text, key) {
				t.Errorf("a key is in %s", what)
			}
		}
	}
	for _, dir := range []string{n.StateDir, n.KubeletDir, "/run", "/etc", "/var", "/dev/shm"} {
		for _, key := range keys {
			wantNowhere(t, dir, key)
		}
	}
}

// replace has a shell script run before a program of the machine, until the test ends.
func replace(t *testing.T, name, script string) {
	t.Helper()
	path, err := exec.LookPath(name)
	rig.Must(t, err)
	original := filepath.Join(t.TempDir(), name)
	rig.Must(t, os.WriteFile(original, []byte(readFile(t, path)), 0o755))
	wrapper := filepath.Join(t.TempDir(), "wrapper")
	rig.Must(t, os.WriteFile(wrapper, fmt.Appendf(nil, "#!/bin/bash\n%s\nexec %s \"$@\"\n", script, original), 0o755))
	rig.Must(t, unix.Mount(wrapper, path, "", unix.MS_BIND, ""))
	t.Cleanup(func() { rig.Must(t, unix.Unmount(path, 0)) })
}

// wantNowhere fails the test where a file below a directory has the text.
func wantNowhere(t *testing.T, dir, text string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil
		}
		if info, err := entry.Info(); err != nil || info.Size() > 64*rig.MiB {
			return nil
		}
		if content, err := os.ReadFile(path); err == nil && bytes.Contains(content, []byte(text)) {
			t.Errorf("a key is in %s", path)
		}
		return nil
	})
}

// startWithLog starts the plugin anew, and returns what returns its log, which has
// everything.
func (n *node) startWithLog(t *testing.T) (log func() string) {
	t.Helper()
	options := n.options
	options.Endpoint = filepath.Join(t.TempDir(), "csi.sock")
	lines := &lockedBuffer{}
	logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Verbosity(10), textlogger.Output(lines)))
	ctx, stop := context.WithCancel(klog.NewContext(context.WithoutCancel(t.Context()), logger))
	ended := make(chan error, 1)
	go func() { ended <- driver.Run(ctx, options) }()
	t.Cleanup(func() {
		stop()
		rig.Must(t, <-ended)
	})
	stateDir := n.StateDir
	n.Plugin = rig.Connect(t, options.Endpoint, options.KubeletDir)
	n.StateDir = stateDir
	return lines.String
}

// lockedBuffer is a buffer that several write to.
type lockedBuffer struct {
	mu    sync.Mutex
	lines bytes.Buffer
}

func (b *lockedBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines.Write(line)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines.String()
}
