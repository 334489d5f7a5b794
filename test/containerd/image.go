package containerd

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

// image is what sandboxes and containers are made of. Its host does not exist, so
// that nobody else's image is meant.
const image = "rawblock.test/busybox:1"

// sleep is what a container does until it is told otherwise.
var sleep = []string{"sleep", "infinity"}

// applets are the commands of busybox that a container has.
var applets = []string{"cat", "dd", "head", "kill", "mknod", "sh", "sleep", "stat"}

// object is an object in JSON.
type object map[string]any

// writeImage writes the image to a file, in the form of docker save
// (https://github.com/moby/docker-image-spec, version 1.2, combined format).
func writeImage(path string) error {
	layer, err := layer()
	if err != nil {
		return err
	}
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       object{"Entrypoint": sleep, "Env": []string{"PATH=/bin"}},
		"rootfs":       object{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]object{{"Config": "config.json", "RepoTags": []string{image}, "Layers": []string{"layer.tar"}}})
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
	return os.WriteFile(path, archive, 0o600)
}

// layer is the root filesystem of the image.
func layer() ([]byte, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w; install busybox-static", err)
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	entries := []entry{{name: "bin/busybox", content: busybox}}
	for _, applet := range applets {
		entries = append(entries, entry{name: "bin/" + applet, link: "busybox"})
	}
	return pack(entries)
}

// entry is a file in an archive, or a symbolic link.
type entry struct {
	name, link string
	content    []byte
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
