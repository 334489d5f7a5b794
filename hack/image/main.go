// Image builds the container image of the plugin, for one or several architectures,
// and a bill of materials for each: without Docker, and so that the same commit
// gives the same digest wherever and whenever it is built.
//
//	go run . -version v1.2.3 -platforms linux/amd64,linux/arm64 -o dist
//
// The directory then has an OCI image layout (image/), which skopeo, crane and oras
// push, an archive for each architecture, which docker load and ctr images import
// read, and its components in CycloneDX.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// build is what is to be built.
type build struct {
	// source is the directory of the module, output where everything goes.
	source, output string
	// name and version are those of the image.
	name, version string
	// created is the time that all that is made states.
	created time.Time
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	source := flags.String("source", "../..", "directory of the module")
	output := flags.String("o", "dist", "directory that gets what is built; it must not exist")
	name := flags.String("name", "ghcr.io/rawblock-csi/rawblock-csi", "name of the image")
	version := flags.String("version", "", "version of the image; by default that of the commit")
	platforms := flags.String("platforms", "linux/amd64,linux/arm64", "what it is built for")
	if err := flags.Parse(args); err != nil {
		return err
	}
	wanted := build{source: *source, output: *output, name: *name, version: *version}
	if err := wanted.complete(ctx); err != nil {
		return err
	}
	if err := os.Mkdir(wanted.output, 0o755); err != nil {
		return err
	}
	digest, err := wanted.all(ctx, strings.Split(*platforms, ","))
	if err != nil {
		return err
	}
	fmt.Printf("%s:%s@%s\n", wanted.name, wanted.version, digest)
	return nil
}

// complete finds what was not given in the commit: the version, and the time, which
// SOURCE_DATE_EPOCH overrides (https://reproducible-builds.org/specs/source-date-epoch).
func (b *build) complete(ctx context.Context) error {
	if b.version == "" {
		version, err := git(ctx, b.source, "describe", "--always", "--dirty", "--tags")
		if err != nil {
			return err
		}
		b.version = version
	}
	seconds := os.Getenv("SOURCE_DATE_EPOCH")
	if seconds == "" {
		committed, err := git(ctx, b.source, "log", "-1", "--format=%ct")
		if err != nil {
			return err
		}
		seconds = committed
	}
	parsed, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return fmt.Errorf("time of the build, in seconds: %w", err)
	}
	b.created = time.Unix(parsed, 0).UTC()
	return nil
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	output, err := exec.CommandContext(ctx, "git", append([]string{"-C", dir}, args...)...).Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(output)), nil
}

// all builds for all platforms and returns the digest of the index.
func (b *build) all(ctx context.Context, platforms []string) (v1.Hash, error) {
	var images []v1.Image
	for _, text := range platforms {
		platform, err := v1.ParsePlatform(text)
		if err != nil {
			return v1.Hash{}, err
		}
		commands, err := b.compile(ctx, *platform)
		if err != nil {
			return v1.Hash{}, err
		}
		image, err := b.image(commands, *platform)
		if err != nil {
			return v1.Hash{}, fmt.Errorf("image for %s: %w", platform, err)
		}
		if err := b.bill(commands, *platform, image); err != nil {
			return v1.Hash{}, fmt.Errorf("bill of materials for %s: %w", platform, err)
		}
		images = append(images, image)
	}
	return b.index(images)
}

// compile builds the commands for a platform and returns their directory.
func (b *build) compile(ctx context.Context, platform v1.Platform) (string, error) {
	dir, err := filepath.Abs(filepath.Join(b.output, "commands-"+platform.Architecture))
	if err != nil {
		return "", err
	}
	// Neither the directory nor the state of the checkout gets into the binaries.
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -buildid= -X main.version="+b.version, "-o", dir+"/", "./cmd/...")
	command.Dir, command.Stderr = b.source, os.Stderr
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS="+platform.OS, "GOARCH="+platform.Architecture, "GOAMD64=v1", "GOARM64=v8.0")
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("build the commands for %s: %w", platform, err)
	}
	return dir, nil
}
