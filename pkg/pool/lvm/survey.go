package lvm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-logr/logr"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Survey is a pool as its volume group has it, for who must not change it: lvm is only
// asked for reports, so the plugin may run or not. Its methods may be called
// concurrently.
type Survey struct{ pool *Pool }

// Look prepares to look at a pool. A volume group that is not there is told by Status and
// Health. Errors: volume.ErrInvalid for an option.
func Look(name string, options Options, programs lvm.Programs, sysfs blockdev.Sysfs) (*Survey, error) {
	p, err := newPool(logr.Discard(), name, options, programs, sysfs)
	if err != nil {
		return nil, err
	}
	return &Survey{p}, nil
}

// look looks at the volume group. One that cannot be used is what Status says; it is
// looked at all the same.
func (s *Survey) look(ctx context.Context) (group, error) {
	g, err := s.pool.look(ctx)
	if err == nil {
		for _, e := range g.entries {
			if e.kind == spaceKind && e.err == nil {
				s.pool.addWiping(e)
			}
		}
		err = unusable(g.check())
	}
	if err == nil && s.pool.options.ThinPool != "" {
		_, err = g.thinPool(s.pool.options.ThinPool)
		err = unusable(err)
	}
	if err == nil || errors.As(err, new(unusableError)) {
		s.pool.note(err)
		return g, nil
	}
	return g, err
}

// List returns all volumes, in no order.
func (s *Survey) List(ctx context.Context) ([]volume.Info, error) {
	g, err := s.look(ctx)
	return g.infos(ctx), err
}

// Capacity returns what could be made if the plugin ran. How full a thin pool is that has
// no device is not known: it is taken to be empty.
func (s *Survey) Capacity(ctx context.Context, parameters map[string]string) (volume.Capacity, error) {
	if _, err := s.pool.parameters(parameters); err != nil {
		return volume.Capacity{}, err
	}
	g, err := s.look(ctx)
	if err != nil || s.Status().Problem != nil {
		return volume.Capacity{}, err
	}
	if s.pool.options.ThinPool == "" {
		return thickRoom(&g).capacity(), nil
	}
	thin, err := g.thinPool(s.pool.options.ThinPool)
	return s.pool.thinRoom(&g, thin).capacity(), err
}

// Status returns what was seen last.
func (s *Survey) Status() Status { return s.pool.Status() }

// Health returns what is wrong with the pool, as it was seen last, VolumeHealth with a
// volume, and Missing the volumes that cannot be used.
func (s *Survey) Health(ctx context.Context) ([]volume.Condition, []linux.DeviceNumber, error) {
	return s.pool.Health(ctx)
}

// VolumeHealth is described with Health. Errors: volume.ErrNotFound.
func (s *Survey) VolumeHealth(ctx context.Context, name string) ([]volume.Condition, []linux.DeviceNumber, error) {
	return s.pool.VolumeHealth(ctx, name)
}

// Missing is described with Health.
func (s *Survey) Missing() []string { return s.pool.Missing() }

// Medium returns where a volume is. Errors: volume.ErrNotFound.
func (s *Survey) Medium(name string) (volume.Medium, error) { return s.pool.Medium(name) }

// Medium returns where a volume is, as it was seen last. Errors: volume.ErrNotFound.
func (p *Pool) Medium(name string) (volume.Medium, error) {
	seen, known := p.Status().entries[name]
	if !known {
		return volume.Medium{}, fmt.Errorf("%w: pool %s has no volume %s in volume group %s", volume.ErrNotFound, p.name, name, p.options.VolumeGroup)
	}
	return seen.medium, nil
}

// mediumOf describes a logical volume.
func mediumOf(g lvm.Group, e entry) volume.Medium {
	detail := fmt.Sprintf("%d bytes on %s", e.Size, strings.Join(e.Extents, ", "))
	switch {
	case e.Pool != "":
		detail = fmt.Sprintf("thin, %d bytes of thin pool %s", e.Size, e.Pool)
	case len(e.Extents) == 0:
		detail = fmt.Sprintf("%d bytes", e.Size)
	}
	return volume.Medium{Kind: "logical volume", Path: g.Name + "/" + e.Name, Detail: detail}
}
