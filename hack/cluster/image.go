package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// image is a container image in a file, in the form of docker save
// (https://github.com/moby/docker-image-spec, version 1.2, combined format), which
// ctr imports and docker load would as well.
type image struct {
	name, archive string
	// user is who a container runs as that does not say; empty: root.
	user string
	// digest is that of the archive.
	digest string
}

// object is an object in JSON, which every reader of YAML understands too.
type object map[string]any

// entry is a file in an archive, or a symbolic link.
type entry struct {
	name, link string
	content    []byte
}

// images makes an image of each program that runs in a pod.
func (c *cluster) images(ctx context.Context) ([]image, error) {
	makers := []func(context.Context) (image, error){c.pluginImage, c.pause, c.busybox}
	for _, p := range c.programs() {
		if p.image != "" {
			makers = append(makers, func(context.Context) (image, error) { return c.programImage(p) })
		}
	}
	return makeImages(ctx, makers)
}

func makeImages(ctx context.Context, makers []func(context.Context) (image, error)) ([]image, error) {
	var images []image
	for _, maker := range makers {
		made, err := maker(ctx)
		if err != nil {
			return nil, fmt.Errorf("make an image: %w", err)
		}
		content, err := os.ReadFile(made.archive)
		if err != nil {
			return nil, err
		}
		made.digest = fmt.Sprintf("%x", sha256.Sum256(content))
		images = append(images, made)
	}
	return images, nil
}

// programImage is the image of a program in the cache, and stays there.
func (c *cluster) programImage(p program) (image, error) {
	made := image{name: p.image + ":" + p.version, archive: filepath.Join(c.cache, "images", p.file()+".tar")}
	if _, err := os.Stat(made.archive); !errors.Is(err, fs.ErrNotExist) {
		return made, err
	}
	content, err := os.ReadFile(c.binary(p.name))
	if err != nil {
		return image{}, err
	}
	return made, made.write("/"+p.name, entry{name: p.name, content: content})
}

// pluginImage has the commands of this tree, as the Dockerfile puts them.
func (c *cluster) pluginImage(ctx context.Context) (image, error) {
	name, err := c.pluginImageName(ctx)
	if err != nil {
		return image{}, err
	}
	version, err := output(exec.CommandContext(ctx, "git", "-C", c.repository, "describe", "--always", "--dirty"))
	if err != nil {
		version = []byte("unknown")
	}
	// Not in the directory of the cluster: a build that goes on after this process was
	// killed must not make it again.
	commands := filepath.Join(c.cache, "tree", "commands")
	// A command that is no more would be in the image.
	if err := errors.Join(os.RemoveAll(commands), os.MkdirAll(commands, 0o755)); err != nil {
		return image{}, err
	}
	if _, err := golang(ctx, c.repository, "build", "-trimpath", "-ldflags", "-s -w -X main.version="+strings.TrimSpace(string(version)),
		"-o", commands+"/", "./cmd/..."); err != nil {
		return image{}, err
	}
	entries, err := files(commands)
	if err != nil {
		return image{}, err
	}
	made := image{name: name, archive: c.path("images", "rawblock-csi.tar")}
	return made, made.write("/rawblock-csi", entries...)
}

func (c *cluster) pause(ctx context.Context) (image, error) {
	binary := filepath.Join(c.cache, "tree", "pause")
	if _, err := golang(ctx, filepath.Join(c.repository, "hack/cluster"), "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "./pause"); err != nil {
		return image{}, err
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return image{}, err
	}
	// Kubernetes' own has this user too (build/pause/Dockerfile), and pods rely on it
	// (runAsNonRoot).
	made := image{name: pauseImage, archive: c.path("images", "pause.tar"), user: "65535:65535"}
	return made, made.write("/pause", entry{name: "pause", content: content})
}

// busybox has all applets of this machine's busybox.
func (c *cluster) busybox(ctx context.Context) (image, error) {
	entries, err := applets(ctx)
	if err != nil {
		return image{}, err
	}
	made := image{name: busyboxImage, archive: c.path("images", "busybox.tar")}
	return made, made.write("/bin/sh", entries...)
}

// applets are busybox, and a link for each of its names.
func applets(ctx context.Context) ([]entry, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	names, err := output(exec.CommandContext(ctx, path, "--list"))
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	entries := []entry{{name: "bin/busybox", content: content}}
	for _, name := range strings.Fields(string(names)) {
		if name != "busybox" {
			entries = append(entries, entry{name: "bin/" + name, link: "busybox"})
		}
	}
	return entries, nil
}

// files are those of a directory.
func files(dir string) ([]entry, error) {
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var entries []entry
	for _, file := range found {
		content, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{name: file.Name(), content: content})
	}
	return entries, nil
}

// write writes the image, of one layer.
func (i image) write(entrypoint string, entries ...entry) error {
	layer, err := pack(entries)
	if err != nil {
		return err
	}
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       object{"Entrypoint": []string{entrypoint}, "Env": []string{"PATH=/bin:/"}, "User": i.user},
		"rootfs":       object{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]object{{"Config": "config.json", "RepoTags": []string{i.name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	archive, err := pack([]entry{
		{name: "layer.tar", content: layer},
		{name: "config.json", content: config},
		{name: "manifest.json", content: manifest},
	})
	if err != nil {
		return err
	}
	return writeFile(i.archive, archive)
}

func pack(entries []entry) ([]byte, error) {
	var archive bytes.Buffer
	writer := tar.NewWriter(&archive)
	for _, entry := range entries {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: entry.name, Mode: 0o755, Size: int64(len(entry.content))}
		if entry.link != "" {
			header.Typeflag, header.Linkname = tar.TypeSymlink, entry.link
		}
		if err := writer.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := writer.Write(entry.content); err != nil {
			return nil, err
		}
	}
	if err := writer.Close(); err != nil {
		return nil, err
	}
	return archive.Bytes(), nil
}

// writeFile writes a file whole or not at all, and makes its directory.
func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	unfinished := path + ".unfinished"
	if err := os.WriteFile(unfinished, content, 0o600); err != nil {
		return err
	}
	return os.Rename(unfinished, path)
}

// writeObject writes a file of JSON.
func writeObject(path string, content object) error {
	text, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(text, '\n'))
}
