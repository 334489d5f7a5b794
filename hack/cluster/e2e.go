package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// The images that Kubernetes' tests of volumes run, by the names that
// test/utils/image/manifest.go of that version has for them.
const (
	e2eBusyboxImage = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2"
	e2eGlibcImage   = "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.1.1"
	e2eAgnhostImage = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"
)

// Kubernetes' own tests, and what their pods on the host run.
var (
	e2eTest = program{name: "e2e.test", source: kubernetes, dir: "test/e2e", test: true}
	agnhost = program{name: "agnhost", source: kubernetes, dir: "test/images/agnhost"}
)

// buildE2E builds Kubernetes' tests. A cluster does without them, so only those who
// run them have them built.
func (c *cluster) buildE2E(ctx context.Context) error {
	return c.buildMissing(ctx, []program{e2eTest, agnhost})
}

// loadE2E gives the tests' images to the nodes of a cluster that is up, and the
// tests to those who use env.
func (c *cluster) loadE2E(ctx context.Context) error {
	if _, err := os.Stat(c.kubeconfig()); err != nil {
		return fmt.Errorf("%w; start the cluster first, with up", err)
	}
	if err := c.buildE2E(ctx); err != nil {
		return err
	}
	images, err := makeImages(ctx, []func(context.Context) (image, error){c.e2eBusybox, c.e2eGlibc, c.e2eAgnhost})
	if err != nil {
		return err
	}
	if err := onEach(c.nodes(), func(m machine) error { return m.load(ctx, images) }); err != nil {
		return err
	}
	link := c.path("bin", e2eTest.name)
	return errors.Join(os.RemoveAll(link), os.Symlink(c.kept(e2eTest), link))
}

func (c *cluster) e2eBusybox(ctx context.Context) (image, error) {
	entries, err := applets(ctx)
	if err != nil {
		return image{}, err
	}
	made := image{name: e2eBusyboxImage, archive: c.path("images", "e2e-busybox.tar")}
	return made, made.write("/bin/sh", entries...)
}

// e2eGlibc stands in for an image with the GNU programs. The tests of volumes use
// its dd, which can do without the cache (oflag=nocache), where busybox cannot. The
// shell is another one too: that of busybox takes its own dd.
func (c *cluster) e2eGlibc(ctx context.Context) (image, error) {
	entries, err := withLibraries(ctx, "/bin/dd", "/bin/sh")
	if err != nil {
		return image{}, err
	}
	others, err := applets(ctx)
	if err != nil {
		return image{}, err
	}
	for _, applet := range others {
		if applet.name != "bin/dd" && applet.name != "bin/sh" {
			entries = append(entries, applet)
		}
	}
	made := image{name: e2eGlibcImage, archive: c.path("images", "e2e-glibc.tar")}
	return made, made.write("/bin/sh", entries...)
}

// e2eAgnhost has the program that keeps a pod running, and a shell to look at the
// host with.
func (c *cluster) e2eAgnhost(ctx context.Context) (image, error) {
	entries, err := applets(ctx)
	if err != nil {
		return image{}, err
	}
	content, err := os.ReadFile(c.kept(agnhost))
	if err != nil {
		return image{}, err
	}
	made := image{name: e2eAgnhostImage, archive: c.path("images", "e2e-agnhost.tar")}
	return made, made.write("/agnhost", append(entries, entry{name: "agnhost", content: content})...)
}

// withLibraries are programs of this machine with the libraries that they load.
func withLibraries(ctx context.Context, paths ...string) ([]entry, error) {
	listed, err := output(exec.CommandContext(ctx, "ldd", paths...))
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Fields(string(listed)) {
		// Of several programs, ldd says "/bin/dd:" before the libraries.
		if filepath.IsAbs(field) && !strings.HasSuffix(field, ":") && !slices.Contains(paths, field) {
			paths = append(paths, field)
		}
	}
	var entries []entry
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{name: strings.TrimPrefix(path, "/"), content: content})
	}
	return entries, nil
}
