package encryption_test

import (
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/luks"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// Without its key a volume is not opened, and nothing is changed.
func TestKeys(t *testing.T) {
	n := newNode(t, newFiles(t, "ext4"))
	ctx := rig.Context(t)
	v := n.create(t, request(name))
	for _, without := range []map[string]string{nil, {"password": n.key}} {
		v.secrets = without
		wantCode(t, v.stage(ctx), codes.InvalidArgument, "there is no key")
	}
	for _, wrong := range []string{"", "short", strings.Repeat("x", luks.MinKey-1), strings.Repeat("x", luks.MaxKey+1)} {
		v.secrets = map[string]string{driver.KeySecret: wrong}
		err := v.stage(ctx)
		wantCode(t, err, codes.InvalidArgument, "bytes")
		if len(wrong) > 1 && strings.Contains(err.Error(), wrong) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	if content := v.content(t); strings.Trim(string(content), "\x00") != "" {
		t.Error("something was written without a valid key")
	}
	v.secrets = map[string]string{driver.KeySecret: n.key}
	target := v.use(t, "pod")
	write(t, target, plaintext, 0)
	v.drop(t, target)
	before := v.content(t)
	for _, wrong := range []string{n.key + "\n", n.key[1:], newKey(t)} {
		v.secrets = map[string]string{driver.KeySecret: wrong}
		err := v.stage(ctx)
		wantCode(t, err, codes.FailedPrecondition, "none of the keys")
		if strings.Contains(err.Error(), wrong) {
			t.Errorf("the error shows the key: %v", err)
		}
		if name, open := v.mapping(); open {
			t.Errorf("%s is open", name)
		}
	}
	v.wantUnchanged(t, before)
	v.secrets = map[string]string{driver.KeySecret: n.key}
	wantData(t, v.use(t, "pod"), plaintext, 0)
}

// One copy of the header is enough, and the other one is mended. Without either, or
// with anything else in its place, nothing is changed.
func TestDamage(t *testing.T) {
	n := newNode(t, newFiles(t, "ext4"))
	ctx := rig.Context(t)
	v := n.create(t, request(name))
	target := v.use(t, "pod")
	write(t, target, plaintext, 0)
	v.drop(t, target)
	good := v.content(t)
	const primary, secondary, copyOf = 0, 16 << 10, 16 << 10
	restore := func() { writeRaw(t, v.rawPath(t), good[:header], 0) }
	for damage, at := range map[string][]int64{
		"the magic of the first copy":     {primary},
		"the metadata of the first copy":  {primary + 5000},
		"the magic of the second copy":    {secondary},
		"the metadata of the second copy": {secondary + 5000},
	} {
		for _, offset := range at {
			writeRaw(t, v.rawPath(t), make([]byte, 512), offset/512*512)
		}
		if err := v.stage(ctx); err != nil {
			t.Errorf("without %s: %v", damage, err)
		}
		rig.Must(t, v.unstage(ctx))
		mended := v.content(t)
		if string(mended[primary:6]) != "LUKS\xba\xbe" || string(mended[secondary:secondary+6]) != "SKUL\xba\xbe" || strings.Trim(string(mended[5000:5512]), "\x00") == "" && strings.Trim(string(good[5000:5512]), "\x00") != "" {
			t.Errorf("%s was not mended", damage)
		}
		restore()
	}
	for damage, spoil := range map[string]func(path string){
		"both copies": func(path string) { writeRaw(t, path, make([]byte, 2*copyOf), 0) },
		"all but the data": func(path string) {
			writeRaw(t, path, make([]byte, header), 0)
		},
		"a filesystem": func(path string) {
			writeRaw(t, path, make([]byte, header), 0)
			run(t, "", "mkfs.ext4", "-q", "-F", path)
		},
		"a header of somebody else": func(path string) {
			run(t, n.key, "cryptsetup", "luksFormat", "-q", "--key-file", "-", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", path)
		},
		"a LUKS1 header": func(path string) {
			run(t, n.key, "cryptsetup", "luksFormat", "-q", "--type", "luks1", "--key-file", "-", "--pbkdf-force-iterations", "1000", path)
		},
	} {
		spoil(v.rawPath(t))
		before := v.content(t)
		err := v.stage(ctx)
		wantCode(t, err, codes.FailedPrecondition, "nothing was changed")
		t.Logf("%s: %v", damage, err)
		v.wantUnchanged(t, before)
		writeRaw(t, v.rawPath(t), good, 0)
	}
	// The key slots have no copy.
	writeRaw(t, v.rawPath(t), make([]byte, 64<<10), 2*copyOf)
	wantCode(t, v.stage(ctx), codes.FailedPrecondition, "none of the keys", "backup")
	restore()
	rig.Must(t, v.stage(ctx))
}

// writeRaw writes to a raw device, past the page cache of others.
func writeRaw(t *testing.T, path string, data []byte, offset int64) {
	t.Helper()
	device, err := os.OpenFile(path, os.O_WRONLY, 0)
	rig.Must(t, err)
	defer device.Close()
	_, err = device.WriteAt(data, offset)
	rig.Must(t, err)
	rig.Must(t, device.Sync())
}

// The medium of one volume in the place of another one, with the same key.
func TestSwappedMedium(t *testing.T) {
	n := newNode(t, newFiles(t, "ext4"))
	ctx := rig.Context(t)
	v, other := n.create(t, request(name)), n.create(t, request(second))
	for _, v := range []*vol{v, other} {
		v.drop(t, v.use(t, "pod"))
	}
	content := other.content(t)
	writeRaw(t, v.rawPath(t), content, 0)
	wantCode(t, v.stage(ctx), codes.FailedPrecondition, "mismatch", second[4:12])
	v.wantUnchanged(t, content)
}

// What a call that was cut off has left is completed.
func TestCutOff(t *testing.T) {
	n := newNode(t, newFiles(t, "ext4"))
	ctx := rig.Context(t)
	v := n.create(t, request(name))
	mark := make([]byte, 512)
	copy(mark, "rawblock-csi: unfinished LUKS2 header of pool/"+name)
	v.drop(t, v.use(t, "pod"))
	whole := v.content(t)
	for at, leave := range map[string]func(path string){
		"the mark":                func(path string) { writeRaw(t, path, mark, 0) },
		"the mark, and a part":    func(path string) { writeRaw(t, path, mark, 0); writeRaw(t, path, whole[512:5<<20], 512) },
		"all but the first block": func(path string) { writeRaw(t, path, mark, 0); writeRaw(t, path, whole[512:header], 512) },
	} {
		writeRaw(t, v.rawPath(t), make([]byte, len(whole)), 0)
		leave(v.rawPath(t))
		if err := v.stage(ctx); err != nil {
			t.Errorf("%s: %v", at, err)
		}
		rig.Must(t, v.unstage(ctx))
	}
	copy(mark, "rawblock-csi: unfinished LUKS2 header of pool/"+second)
	writeRaw(t, v.rawPath(t), mark, 0)
	wantCode(t, v.stage(ctx), codes.FailedPrecondition, "another volume")
	writeRaw(t, v.rawPath(t), whole[:512], 0)

	mapping, _ := v.mapping()
	// The plugin was killed before it recorded what it had opened.
	run(t, n.key, "cryptsetup", "open", "--key-file", "-", "--disable-keyring", v.rawPath(t), mapping)
	rig.Must(t, v.stage(ctx))
	// A cryptsetup that was killed has made a mapping without a table.
	for _, then := range []func() error{func() error { return v.stage(ctx) }, func() error { return v.unstage(ctx) }} {
		rig.Must(t, v.unstage(ctx))
		run(t, "", "dmsetup", "create", mapping, "--notable", "-u", "CRYPT-LUKS2-0123-"+mapping)
		rig.Must(t, then())
	}
	if _, open := v.mapping(); open {
		t.Errorf("%s is left", mapping)
	}
	// Somebody else's mapping has the name.
	run(t, "", "dmsetup", "create", mapping, "--table", "0 8 zero")
	defer run(t, "", "dmsetup", "remove", mapping)
	wantCode(t, v.stage(ctx), codes.FailedPrecondition, "not one of cryptsetup")
}

// A mapping that somebody has open stays, and one over another device is not given.
func TestMappingInUse(t *testing.T) {
	n := newNode(t, newFiles(t, "ext4"))
	ctx := rig.Context(t)
	v := n.create(t, request(name))
	target := v.use(t, "pod")
	mapping, _ := v.mapping()
	held, err := os.Open("/dev/mapper/" + mapping)
	rig.Must(t, err)
	rig.Must(t, v.unpublish(ctx, target))
	wantCode(t, v.unstage(ctx), codes.FailedPrecondition, "in use", mapping)
	rig.Must(t, held.Close())
	rig.Must(t, v.unstage(ctx))

	disk := machine.Add(t, machine.Disk{Size: 32 * rig.MiB})
	run(t, n.key, "cryptsetup", "luksFormat", "-q", "--key-file", "-", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", disk.Path)
	run(t, n.key, "cryptsetup", "open", "--key-file", "-", disk.Path, mapping)
	wantCode(t, v.publish(ctx, target), codes.FailedPrecondition, "over the device")
	held, err = os.Open("/dev/mapper/" + mapping)
	rig.Must(t, err)
	wantCode(t, v.stage(ctx), codes.FailedPrecondition, "over the device")
	wantData(t, "/dev/mapper/"+mapping, "", 0)
	rig.Must(t, held.Close())
	// A leftover that nobody uses goes.
	wantCode(t, v.stage(ctx), codes.FailedPrecondition, "over the device")
	rig.Must(t, v.stage(ctx))
}

// A revoked volume, whose table is an error by now, is not given to another pod
// before it was staged anew.
func TestRevoked(t *testing.T) {
	n := newNode(t, newFiles(t, "ext4"))
	ctx := rig.Context(t)
	v := n.create(t, request(name))
	target := v.use(t, "pod")
	write(t, target, plaintext, 0)
	mapping, _ := v.mapping()
	run(t, "", "dmsetup", "suspend", "--noflush", mapping)
	run(t, "", "dmsetup", "load", mapping, "--table", "0 16384 error")
	run(t, "", "dmsetup", "resume", mapping)
	wantCode(t, v.publish(ctx, v.Target(t, "pod-2")), codes.FailedPrecondition, "revoked")
	wantCode(t, v.stage(ctx), codes.FailedPrecondition, "revoked")
	v.drop(t, target)
	wantData(t, v.use(t, "pod"), plaintext, 0)
}

// The disk is pulled out under a volume that is published: its pod can be ended, and
// the volume is as it was once the disk is back.
func TestPulledOut(t *testing.T) {
	pool, medium := newPartitions(t, 0)
	n := newNode(t, pool)
	ctx := rig.Context(t)
	v := n.create(t, request(name))
	target := v.use(t, "pod")
	write(t, target, plaintext, 0)
	medium.Unplug(t)
	rig.Must(t, v.unpublish(ctx, target))
	rig.Must(t, v.unstage(ctx))
	if name, open := v.mapping(); open {
		t.Errorf("%s is open", name)
	}
	wantCode(t, v.stage(ctx), codes.NotFound)
	medium.Plug(t)
	wantData(t, v.use(t, "pod"), plaintext, 0)
}
