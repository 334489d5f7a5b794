package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// defaultOverlay is what is deployed of this project unless RAWBLOCK_OVERLAY names
// another directory of the repository, such as deploy/kubernetes/overlays/default.
const defaultOverlay = "hack/cluster/overlay"

// manifests has what a cluster needs beside that, and this project does not deploy.
//
//go:embed manifests
var manifests embed.FS

// render is what users apply, as it is. The overlay may take files from anywhere in
// the repository.
func (c *cluster) render(ctx context.Context) ([]byte, error) {
	return output(c.kubectlCommand(ctx, "kustomize", "--load-restrictor=LoadRestrictionsNone", filepath.Join(c.repository, c.overlay)))
}

// imageLine is how an image stands in a manifest.
var imageLine = regexp.MustCompile(`(?m)^\s*(?:- )?image: (\S+)$`)

// imagesOf are the images that manifests name.
func imagesOf(rendered []byte) []string {
	var names []string
	for _, match := range imageLine.FindAllSubmatch(rendered, -1) {
		names = append(names, string(match[1]))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// pluginImageName is what the manifests call the plugin's image. The one that is
// made here gets the same name, so that they need no change.
func (c *cluster) pluginImageName(ctx context.Context) (string, error) {
	rendered, err := c.render(ctx)
	if err != nil {
		return "", err
	}
	for _, name := range imagesOf(rendered) {
		if strings.Contains(name, "/rawblock-csi:") {
			return name, nil
		}
	}
	return "", fmt.Errorf("the overlay %s names no image of rawblock-csi", c.overlay)
}

// checkImages says which image would be missing: none can be pulled.
func (c *cluster) checkImages(ctx context.Context, images []image) error {
	rendered, err := c.render(ctx)
	if err != nil {
		return err
	}
	for _, name := range imagesOf(rendered) {
		if !slices.ContainsFunc(images, func(i image) bool { return i.name == name }) {
			return fmt.Errorf("the overlay %s asks for %s, which is not made here; see versions.go", c.overlay, name)
		}
	}
	return nil
}

// deploy applies the definitions of the snapshots' kinds, their controller, and
// this project's overlay, and waits until all of it works.
func (c *cluster) deploy(ctx context.Context, plugin image) error {
	definitions, err := snapshotClient.download(ctx, c.dir)
	if err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, "apply", "--server-side", "--kustomize", filepath.Join(definitions.Dir, "config/crd")); err != nil {
		return err
	}
	if err := c.deploySnapshotController(ctx); err != nil {
		return err
	}
	rendered, err := c.render(ctx)
	if err != nil {
		return err
	}
	apply := c.kubectlCommand(ctx, "apply", "--server-side", "--filename=-")
	apply.Stdin = bytes.NewReader(rendered)
	if _, err := output(apply); err != nil {
		return err
	}
	if err := c.replacePlugin(ctx, plugin); err != nil {
		return err
	}
	say("Everything is deployed.")
	return c.waitUntilDeployed(ctx)
}

// replacePlugin has the DaemonSet start anew where its image changed under its name.
func (c *cluster) replacePlugin(ctx context.Context, plugin image) error {
	deployed := c.path("images", "deployed")
	before, err := os.ReadFile(deployed)
	if err == nil && string(before) != plugin.digest {
		if _, err := c.kubectl(ctx, "--namespace=rawblock-csi", "rollout", "restart", "daemonset/rawblock-csi-node"); err != nil {
			return err
		}
	}
	return writeFile(deployed, []byte(plugin.digest))
}

// deploySnapshotController applies the manifests of the controller's own module,
// with what distributed snapshotting asks for.
func (c *cluster) deploySnapshotController(ctx context.Context) error {
	controller, err := snapshotter.download(ctx, c.dir)
	if err != nil {
		return err
	}
	dir := c.path("manifests")
	for _, name := range []string{"rbac-snapshot-controller.yaml", "setup-snapshot-controller.yaml"} {
		content, err := os.ReadFile(filepath.Join(controller.Dir, "deploy/kubernetes/snapshot-controller", name))
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, name), content); err != nil {
			return err
		}
	}
	content, err := manifests.ReadFile("manifests/kustomization.yaml")
	if err != nil {
		return err
	}
	content = bytes.ReplaceAll(content, []byte("VERSION"), []byte(snapshotterVersion))
	if err := writeFile(filepath.Join(dir, "kustomization.yaml"), content); err != nil {
		return err
	}
	_, err = c.kubectl(ctx, "apply", "--server-side", "--kustomize", dir)
	return err
}

// waitUntilDeployed waits until kubelet and the scheduler know the plugin.
func (c *cluster) waitUntilDeployed(ctx context.Context) error {
	for _, what := range []struct{ namespace, workload string }{
		{"kube-system", "deployment/snapshot-controller"},
		{"rawblock-csi", "daemonset/rawblock-csi-node"},
		{"rawblock-csi", "deployment/rawblock-csi-resizer"},
	} {
		_, err := c.kubectl(ctx, "--namespace="+what.namespace, "rollout", "status", what.workload, "--timeout=3m")
		if err != nil {
			pods, _ := c.kubectl(ctx, "get", "pods", "--all-namespaces", "--output=wide") // Only to say more.
			return errors.Join(err, errors.New(string(pods)))
		}
	}
	for _, node := range c.nodes() {
		err := until(ctx, "kubelet of "+node.name+" knows the plugin", time.Minute, func() error {
			drivers, err := c.kubectl(ctx, "get", "csinode", node.name, "--output=jsonpath={.spec.drivers[*].name}")
			if err == nil && string(drivers) != "csi.rawblock.dev" {
				err = fmt.Errorf("it knows %q", drivers)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
