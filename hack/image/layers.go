package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// image makes the image of the commands in a directory, as the Dockerfile does, and an
// archive of it.
func (b *build) image(commands string, platform v1.Platform) (v1.Image, error) {
	content, err := b.archive(commands)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.Append(base, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: b.created}, CreatedBy: "hack/image"}})
	if err != nil {
		return nil, err
	}
	image, err = mutate.ConfigFile(image, b.config(image, platform))
	if err != nil {
		return nil, err
	}
	tag, err := name.NewTag(b.name + ":" + strings.NewReplacer("+", "_").Replace(b.version))
	if err != nil {
		return nil, err
	}
	return image, tarball.WriteToFile(filepath.Join(b.output, "rawblock-csi-"+platform.Architecture+".tar"), tag, image)
}

func (b *build) config(image v1.Image, platform v1.Platform) *v1.ConfigFile {
	config, err := image.ConfigFile()
	if err != nil {
		panic(err) // It is in memory.
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = platform.OS, platform.Architecture, v1.Time{Time: b.created}
	config.Config = v1.Config{
		// As root: it mounts, and opens the host's block devices.
		User:       "0:0",
		Entrypoint: []string{"/rawblock-csi"},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "rawblock-csi",
			"org.opencontainers.image.description": "Raw block devices for Kubernetes pods",
			"org.opencontainers.image.source":      "https://github.com/rawblock-csi/rawblock-csi",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     b.version,
		},
	}
	return config
}

// archive returns the files of a directory as a layer has them: with one time and
// one owner.
func (b *build) archive(dir string) ([]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var content bytes.Buffer
	writer := tar.NewWriter(&content)
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, err
		}
		header := &tar.Header{Name: entry.Name(), Mode: 0o755, Size: int64(len(data)), ModTime: b.created, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if err := writer.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := writer.Write(data); err != nil {
			return nil, err
		}
	}
	return content.Bytes(), writer.Close()
}

// index writes the layout with the images of all platforms and returns its digest.
func (b *build) index(images []v1.Image) (v1.Hash, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, image := range images {
		config, err := image.ConfigFile()
		if err != nil {
			return v1.Hash{}, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: config.Platform()}})
	}
	digest, err := index.Digest()
	if err != nil {
		return v1.Hash{}, err
	}
	path, err := layout.Write(filepath.Join(b.output, "image"), empty.Index)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("write the image layout: %w", err)
	}
	return digest, path.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": b.version,
	}))
}
