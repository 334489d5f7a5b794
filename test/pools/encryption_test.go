package pools

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/file"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// mappings stand in for dm-crypt, which this machine need not have: what they open is
// the raw device itself. test/vm/encryption has the real ones.
type mappings struct {
	// fail is what every call fails with.
	fail error
	// keys are those that volumes were opened with, by their names.
	keys map[string][]string
}

func (m *mappings) Check(context.Context) error { return m.fail }

func (m *mappings) Open(_ context.Context, id volume.ID, _ volume.Source, raw *blockdev.Device, keys [][]byte) (*blockdev.Device, error) {
	if m.fail != nil {
		return nil, m.fail
	}
	m.keys[id.Name] = nil
	for _, key := range keys {
		m.keys[id.Name] = append(m.keys[id.Name], string(key))
	}
	return blockdev.OpenNumber(raw.Number(), blockdev.NewSysfs("/sys"))
}

func (m *mappings) Find(_ context.Context, id volume.ID, raw *blockdev.Device) (*blockdev.Device, error) {
	if m.keys[id.Name] == nil {
		return nil, fmt.Errorf("%w: not open", volume.ErrPrecondition)
	}
	return blockdev.OpenNumber(raw.Number(), blockdev.NewSysfs("/sys"))
}

func (m *mappings) Resize(context.Context, volume.ID, *blockdev.Device) error { return m.fail }

func (m *mappings) Close(_ context.Context, id volume.ID) error {
	delete(m.keys, id.Name)
	return nil
}

// nodeKeys are the keys of a node.
type nodeKeys map[string]string

func (k nodeKeys) Keys(name string) ([][]byte, error) {
	if key, found := k[name]; found {
		return [][]byte{[]byte(key)}, nil
	}
	return nil, fmt.Errorf("%w: no key %s", volume.ErrPrecondition, name)
}

// newEncrypting starts a plugin with a pool of files and a way to open encrypted
// volumes.
func newEncrypting(t *testing.T, encryption *mappings) *rig.Plugin {
	t.Helper()
	rig.RequireRoot(t)
	pool, err := file.New(t.Context(), "pool", file.Options{Directory: t.TempDir(), Capacity: 3 << 30, Overcommit: 2}, blockdev.NewSysfs("/sys"))
	rig.Must(t, err)
	t.Cleanup(pool.Close)
	return rig.NewPluginWith(t, func(options *driver.Options) {
		options.Pools = map[string]driver.Pool{"pool": pool}
		options.Keys = nodeKeys{"tenant-1": "the key of a tenant"}
		if encryption != nil {
			options.Encryption = encryption
		}
	})
}

func encryptedRequest(parameters map[string]string) *csi.CreateVolumeRequest {
	req := createRequest(name, size)
	req.Parameters["thin"] = "true"
	for key, value := range parameters {
		req.Parameters[key] = value
	}
	return req
}

// What a user is told is what a pod has; what a pool is asked for is 16 MiB more.
func TestEncryptedSizes(t *testing.T) {
	plugin := newEncrypting(t, &mappings{keys: map[string][]string{}})
	const overhead, preferred = 16 * rig.MiB, 1 << 30
	for i, test := range []struct {
		asked *csi.CapacityRange
		want  int64
	}{
		{&csi.CapacityRange{RequiredBytes: size, LimitBytes: size}, size},
		{&csi.CapacityRange{RequiredBytes: 4096}, 4096},
		{&csi.CapacityRange{RequiredBytes: 1}, 4096},
		{&csi.CapacityRange{LimitBytes: size}, size},
		{&csi.CapacityRange{LimitBytes: 4 << 30}, preferred},
		{nil, preferred},
	} {
		req := encryptedRequest(map[string]string{"encryption": "luks2"})
		req.Name, req.CapacityRange = fmt.Sprintf("volume-%d", i), test.asked
		for range 2 {
			made, err := plugin.CreateVolume(rig.Context(t), req)
			if err != nil || made.GetVolume().GetCapacityBytes() != test.want {
				t.Errorf("asked for %v, got %v, %v; want %d bytes", test.asked, made, err, test.want)
			}
		}
		v := plugin.Provisioned(t, "pool/"+req.GetName()+"@"+rig.NodeID)
		got, err := plugin.ControllerGetVolume(rig.Context(t), &csi.ControllerGetVolumeRequest{VolumeId: v.ID})
		if err != nil || got.GetVolume().GetCapacityBytes() != test.want {
			t.Errorf("asked for %v, it is %v, %v", test.asked, got, err)
		}
		grown, err := plugin.ControllerExpandVolume(rig.Context(t), &csi.ControllerExpandVolumeRequest{
			VolumeId: v.ID, CapacityRange: &csi.CapacityRange{RequiredBytes: test.want + 1, LimitBytes: test.want + 4096},
		})
		if err != nil || grown.GetCapacityBytes() != test.want+4096 {
			t.Errorf("grown to %v, %v", grown, err)
		}
		_, err = plugin.DeleteVolume(rig.Context(t), &csi.DeleteVolumeRequest{VolumeId: v.ID})
		rig.Must(t, err)
	}
	plain, err := plugin.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{})
	rig.Must(t, err)
	encrypted, err := plugin.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{Parameters: map[string]string{"encryption": "luks2"}})
	rig.Must(t, err)
	if plain.GetMaximumVolumeSize().GetValue()-encrypted.GetMaximumVolumeSize().GetValue() != overhead || encrypted.GetMinimumVolumeSize().GetValue() != 4096 {
		t.Errorf("plain: %v; encrypted: %v", plain, encrypted)
	}
}

// Encryption that is asked for in any way, and cannot be had, is an error.
func TestEncryptionIsNotPassedOver(t *testing.T) {
	luks2 := map[string]string{"encryption": "luks2"}
	plugin := newEncrypting(t, &mappings{keys: map[string][]string{}})
	for _, parameters := range []map[string]string{
		{"encryption": ""},
		{"encryption": "luks1"},
		{"encryption": "LUKS2"},
		{"encryption": "false"},
		{"encryptionKey": "tenant-1"},
		{"encryption": "luks2", "encryptionKey": "../tenant-1"},
		{"encryption": "luks2", "encryptionKey": ""},
	} {
		_, err := plugin.CreateVolume(rig.Context(t), encryptedRequest(parameters))
		wantCode(t, err, codes.InvalidArgument)
		_, err = plugin.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{Parameters: parameters})
		wantCode(t, err, codes.InvalidArgument)
	}
	_, err := plugin.CreateVolume(rig.Context(t), encryptedRequest(map[string]string{"encryption": "luks2", "encryptionKey": "tenant-2"}))
	wantCode(t, err, codes.ResourceExhausted)

	// On a node that cannot encrypt.
	for _, unable := range []*mappings{nil, {fail: errors.New("no cryptsetup")}} {
		plugin := newEncrypting(t, unable)
		_, err := plugin.CreateVolume(rig.Context(t), encryptedRequest(luks2))
		wantCode(t, err, codes.ResourceExhausted)
		capacity, err := plugin.GetCapacity(rig.Context(t), &csi.GetCapacityRequest{Parameters: luks2})
		if err != nil || capacity.GetAvailableCapacity() != 0 || capacity.GetMaximumVolumeSize().GetValue() != 0 {
			t.Errorf("it offers %v, %v", capacity, err)
		}
	}

	// A device that an administrator names.
	disk := rig.NewDisk(t, size)
	v := plugin.NewVolume(t, "disk-1", disk.Path)
	v.Context["encryption"] = "luks2"
	wantCode(t, stageWith(t, plugin, v, map[string]string{"encryptionKey": "a key of some bytes"}), codes.InvalidArgument)
	wantCode(t, v.Publish(rig.Context(t), v.Target(t, "pod")), codes.InvalidArgument)
	delete(v.Context, "encryption")
	wantCode(t, stageWith(t, plugin, v, map[string]string{"encryptionKey": "a key of some bytes"}), codes.InvalidArgument)
	rig.Must(t, stageWith(t, plugin, v, map[string]string{"user": "x"}))
	rig.Must(t, v.Unstage(rig.Context(t)))
}

func stageWith(t *testing.T, plugin *rig.Plugin, v *rig.Volume, secrets map[string]string) error {
	t.Helper()
	_, err := plugin.NodeStageVolume(rig.Context(t), &csi.NodeStageVolumeRequest{
		VolumeId: v.ID, StagingTargetPath: v.Staging, VolumeCapability: v.Capability(), VolumeContext: v.Context, Secrets: secrets,
	})
	return err
}

// The medium, the PersistentVolume and the keys must fit each other.
func TestEncryptedStage(t *testing.T) {
	encryption := &mappings{keys: map[string][]string{}}
	plugin := newEncrypting(t, encryption)
	luks2, named := map[string]string{"encryption": "luks2"}, map[string]string{"encryption": "luks2", "encryptionKey": "tenant-1"}
	secret := map[string]string{"encryptionKey": "a key in a secret", "other": "x"}
	changed := map[string]string{"encryptionKey": "a key in a secret", "encryptionKeyPrevious": "the one before"}
	for kind, parameters := range map[string]map[string]string{"encrypted": luks2, "plain": nil} {
		req := encryptedRequest(parameters)
		req.Name = kind
		made, err := plugin.CreateVolume(rig.Context(t), req)
		rig.Must(t, err)
		if len(made.GetVolume().GetVolumeContext()) != len(parameters) {
			t.Errorf("%s: attributes %v", kind, made.GetVolume().GetVolumeContext())
		}
	}
	for _, test := range []struct {
		volume              string
		attributes, secrets map[string]string
		want                codes.Code
		keys                string
	}{
		{"encrypted", luks2, secret, codes.OK, "a key in a secret"},
		{"encrypted", luks2, changed, codes.OK, "a key in a secret, the one before"},
		{"encrypted", named, nil, codes.OK, "the key of a tenant"},
		{"encrypted", named, map[string]string{"other": "x"}, codes.OK, "the key of a tenant"},
		{"encrypted", named, secret, codes.InvalidArgument, ""},
		{"encrypted", luks2, nil, codes.InvalidArgument, ""},
		{"encrypted", luks2, map[string]string{"encryptionKeyPrevious": "x"}, codes.InvalidArgument, ""},
		{"encrypted", map[string]string{"encryption": "luks2", "encryptionKey": "tenant-2"}, nil, codes.FailedPrecondition, ""},
		{"encrypted", nil, secret, codes.InvalidArgument, ""},
		{"encrypted", nil, nil, codes.FailedPrecondition, ""},
		{"encrypted", map[string]string{"encryption": "luks3"}, secret, codes.InvalidArgument, ""},
		{"encrypted", map[string]string{"csi.storage.k8s.io/x": "y"}, nil, codes.FailedPrecondition, ""},
		{"plain", luks2, secret, codes.FailedPrecondition, ""},
		{"plain", nil, secret, codes.InvalidArgument, ""},
		{"plain", nil, nil, codes.OK, ""},
	} {
		v := plugin.Provisioned(t, "pool/"+test.volume+"@"+rig.NodeID)
		v.Context = test.attributes
		what := fmt.Sprintf("%s with %v and %v", test.volume, test.attributes, test.secrets)
		err := stageWith(t, plugin, v, test.secrets)
		if got := strings.Join(encryption.keys[test.volume], ", "); got != test.keys {
			t.Errorf("%s: opened with %q, want %q (%v)", what, got, test.keys, err)
		}
		t.Log(what, err)
		wantCode(t, err, test.want)
		target := v.Target(t, "pod")
		if test.want == codes.OK {
			rig.Must(t, v.Publish(rig.Context(t), target))
			rig.Must(t, v.Unpublish(rig.Context(t), target))
		} else if err := v.Publish(rig.Context(t), target); err == nil && test.volume == "encrypted" {
			t.Errorf("%s: it was published all the same", what)
		}
		rig.Must(t, v.Unpublish(rig.Context(t), target))
		rig.Must(t, v.Unstage(rig.Context(t)))
	}
}
