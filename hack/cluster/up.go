package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"
)

// begin is what say counts the time from.
var begin = time.Now()

// say tells what was done, and when.
func say(format string, args ...any) {
	fmt.Printf("%5.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
}

// up starts what does not run of the cluster. It can be called again after it failed.
func (c *cluster) up(ctx context.Context) error {
	if err := checkMachine(); err != nil {
		return err
	}
	if err := c.build(ctx); err != nil {
		return err
	}
	say("Kubernetes %s and the sidecars are built.", kubernetesVersion)
	images, err := c.images(ctx)
	if err != nil {
		return err
	}
	if err := c.checkImages(ctx, images); err != nil {
		return err
	}
	say("%d images are made.", len(images))
	if err := c.prepare(ctx); err != nil {
		return err
	}
	// Kubelets wait for the API server, and pods for images.
	if err := onEach(c.machines(), func(m machine) error { return m.startWith(ctx, images) }); err != nil {
		return err
	}
	say("All machines run, and the nodes have the images.")
	if err := c.deploy(ctx, images[0]); err != nil {
		return err
	}
	say("The cluster is up. To use it:")
	return c.env()
}

// startWith starts a machine, and gives the images to a node.
func (m machine) startWith(ctx context.Context, images []image) error {
	if err := m.start(ctx); err != nil || !m.isNode() {
		return err
	}
	return m.load(ctx, images)
}

// prepare makes what the machines find when they start.
func (c *cluster) prepare(ctx context.Context) error {
	if err := c.installPrograms(); err != nil {
		return err
	}
	if err := c.writeCredentials(); err != nil {
		return fmt.Errorf("make the credentials: %w", err)
	}
	if err := c.keepSysctls(); err != nil {
		return err
	}
	return makeBridge(ctx)
}

// installPrograms makes what env has in its PATH: kubectl, helm, and this program.
func (c *cluster) installPrograms() error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := writeFile(c.path("bin", "cluster"), self); err != nil {
		return err
	}
	if err := os.Chmod(c.path("bin", "cluster"), 0o755); err != nil {
		return err
	}
	for _, name := range []string{"kubectl", "helm"} {
		if err := os.Symlink(c.binary(name), c.path("bin", name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// onEach does something on several machines at the same time.
func onEach(machines []machine, do func(machine) error) error {
	errs := make([]error, len(machines))
	var group sync.WaitGroup
	for i, m := range machines {
		group.Go(func() { errs[i] = do(m) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// down takes down what there is of a cluster, also of one that did not come up.
func (c *cluster) down(ctx context.Context) error {
	if err := onEach(c.machines(), func(m machine) error { return m.halt(ctx) }); err != nil {
		return err
	}
	say("All machines have ended, with their mounts and loop devices.")
	err := errors.Join(removeCgroups(ctx, cgroupName), c.removeBridge(ctx), c.restoreSysctls())
	if err != nil {
		return err
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("remove %s: %w", c.dir, err)
	}
	say("Nothing is left of the cluster. What was built is in %s.", c.cache)
	return nil
}
