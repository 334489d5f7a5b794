package hotplug

import (
	"fmt"

	"github.com/rawblock-csi/rawblock-csi/pkg/linux"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// at runs f with the place of a path in a container. What the container has there may be
// a filesystem that never answers: where it takes long f goes on by itself, and what it has
// open stays open. Errors: those of openPlace and f; volume.ErrAborted and linux.ErrStuck.
func (m *Manager) at(container *container, p string, f func(place) error) error {
	done := make(chan error, 1)
	container.kept.Add(1)
	begun, err := m.limit.Do(fmt.Sprintf("container of process %d (%d)", container.process.PID(), container.start), func() {
		defer container.close()
		place, err := openPlace(container, p)
		if err == nil {
			err = f(place)
			place.close()
		}
		done <- err
	})
	if !begun {
		container.close()
	}
	if err != nil {
		return fmt.Errorf("%w: the filesystem of %s in the container: %w", volume.ErrAborted, p, err)
	}
	return <-done
}

// makeNode makes the node of a device in a container, and returns its identity. Errors:
// those of at and make.
func (m *Manager) makeNode(container *container, p string, number linux.DeviceNumber) (linux.FileID, error) {
	var made linux.FileID
	err := m.at(container, p, func(place place) (err error) {
		made, err = place.make(number)
		return err
	})
	if err != nil {
		return linux.FileID{}, err // Nothing is read that may be made yet.
	}
	return made, nil
}
