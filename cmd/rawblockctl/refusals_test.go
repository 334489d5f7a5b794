package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/pkg/driver"
	"github.com/rawblock-csi/rawblock-csi/pkg/pool/static"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// refusals are failures because of which a pod does not start, or a disk is not taken.
var refusals = []failureMode{
	{
		// That they have changed is seen from here by which of them the volume names.
		"Disks have changed names", "A volume names a disk by the kernel's name, and pins its serial number. After the next boot that is the name of another disk.", "",
		func(t *testing.T, s *scene) (*patient, func()) {
			mine, other := s.serial(t, "mine"), s.serial(t, "other")
			s.begin(t, "")
			user := s.admit(t, "", "victim", mine.Path)
			user.Context[static.SerialAttribute] = "mine"
			return user, func() { user.Context[static.DeviceAttribute] = other.Path }
		},
	},
	{
		"Two disks state one serial number", "A volume pins a serial number, and a second disk comes that states it too.", "",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk := s.serial(t, "twin")
			s.begin(t, "")
			user := s.admit(t, "", "victim", disk.Path)
			user.Context[static.SerialAttribute] = "twin"
			return user, func() { s.serial(t, "twin") }
		},
	},
	{
		"The node itself uses a disk", "Somebody mounts a filesystem of a disk that a volume names.", "",
		func(t *testing.T, s *scene) (*patient, func()) {
			disk := machine.Add(t, machine.Disk{Size: failureSize})
			s.begin(t, "")
			user := s.admit(t, "", "victim", disk.Path)
			return user, func() {
				command(t, "mkfs.ext4", "-q", disk.Path)
				where := filepath.Join(filepath.Dir(s.files), "mounted")
				rig.Must(t, os.Mkdir(where, 0o755))
				command(t, "mount", disk.Path, where)
				t.Cleanup(func() { unix.Unmount(where, unix.MNT_DETACH) })
			}
		},
	},
	{
		"A disk with somebody's data matches a pool", "A disk that the configuration of a pool matches is plugged in, and has a filesystem.", "",
		func(t *testing.T, s *scene) (*patient, func()) {
			s.serial(t, "pool-1")
			disk := s.serial(t, "pool-2")
			command(t, "mkfs.ext4", "-q", disk.Path)
			disk.Unplug(t)
			s.begin(t, "pools: [{name: pool, disk: {match: {serial: pool-*}}}]\n")
			return nil, func() { disk.Plug(t) }
		},
	},
	{
		"An encryption key is wrong", "The secret of a StorageClass has been replaced, and is not what the volume was made with.", "",
		func(t *testing.T, s *scene) (*patient, func()) {
			user := s.ofEncrypted(t)
			return user, func() { user.Secrets = map[string]string{driver.KeySecret: strings.Repeat("wrong", 8)} }
		},
	},
	{
		"An encryption key is missing", "The StorageClass or the PersistentVolume names no secret.", "",
		func(t *testing.T, s *scene) (*patient, func()) {
			user := s.ofEncrypted(t)
			return user, func() { user.Secrets = nil }
		},
	},
	{
		"A LUKS header is lost", "Something has overwritten both copies of the LUKS header.", "",
		func(t *testing.T, s *scene) (*patient, func()) {
			user := s.ofEncrypted(t)
			return user, func() {
				data, err := os.OpenFile(s.data(t), os.O_WRONLY, 0)
				rig.Must(t, err)
				defer data.Close()
				_, err = data.Write(make([]byte, 32*1024)) // Two copies of 16 KiB.
				rig.Must(t, err)
			}
		},
	},
}

// serial plugs a disk in that states a serial number.
func (s *scene) serial(t *testing.T, number string) *machine.Plugged {
	t.Helper()
	return machine.Add(t, machine.Disk{Size: failureSize, Serial: number})
}

// ofEncrypted has an encrypted volume that a pod has used.
func (s *scene) ofEncrypted(t *testing.T) *patient {
	t.Helper()
	s.disk = machine.Add(t, machine.Disk{Size: failureSize})
	s.begin(t, "pools: [{name: pool, file: {directory: "+s.files+", capacity: 48Mi}}]\n")
	s.parameters = map[string]string{driver.EncryptionParameter: "luks2"}
	user := s.admit(t, "pool", "victim", "")
	user.Secrets = map[string]string{driver.KeySecret: strings.Repeat("right", 8)}
	rig.Must(t, user.start(rig.Context(t)))
	rig.Must(t, user.takeDown(rig.Context(t), t))
	return user
}

// start is what kubelet asks for when the pod starts.
func (p *patient) start(ctx context.Context) error {
	if err := p.Stage(ctx); err != nil {
		return err
	}
	return p.Publish(ctx, p.target)
}
