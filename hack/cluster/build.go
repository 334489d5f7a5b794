package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// binary is where a program is kept.
func (c *cluster) binary(name string) string {
	for _, p := range c.programs() {
		if p.name == name {
			return c.kept(p)
		}
	}
	panic("no program " + name)
}

func (c *cluster) kept(p program) string { return filepath.Join(c.binaries(), p.file()) }

func (c *cluster) binaries() string { return filepath.Join(c.cache, "bin") }

func (p program) file() string { return p.name + "-" + p.tag() }

// tag tells what is built of a source from what is built of another one.
func (s source) tag() string {
	if s.shared {
		return s.version + "-with-" + kubernetesVersion
	}
	return s.version
}

// build builds the programs of a cluster that are not in the cache.
func (c *cluster) build(ctx context.Context) error { return c.buildMissing(ctx, c.programs()) }

func (c *cluster) buildMissing(ctx context.Context, programs []program) error {
	for _, p := range programs {
		if _, err := os.Stat(c.kept(p)); err == nil {
			continue
		}
		start := time.Now()
		if err := c.buildProgram(ctx, p); err != nil {
			return fmt.Errorf("build %s: %w", p.file(), err)
		}
		say("Built %s in %s.", p.file(), time.Since(start).Round(time.Second))
	}
	return nil
}

// buildProgram builds in a module that requires the program's, since go install
// refuses a module that replaces others.
func (c *cluster) buildProgram(ctx context.Context, p program) error {
	scratch := filepath.Join(c.cache, "src", strings.ReplaceAll(p.module, "/", "-")+"-"+p.tag())
	if err := makeScratch(ctx, scratch, p.source); err != nil {
		return err
	}
	// A program that was not linked to its end must not be taken for one.
	unfinished := filepath.Join(scratch, p.name)
	args := []string{"build"}
	if p.test {
		args = []string{"test", "-c"}
	}
	args = append(args, "-mod=mod", "-trimpath", "-ldflags", p.linkerFlags(), "-o", unfinished,
		strings.TrimSuffix(p.module+"/"+p.dir, "/"))
	if _, err := golang(ctx, scratch, args...); err != nil {
		return err
	}
	if err := os.MkdirAll(c.binaries(), 0o755); err != nil {
		return err
	}
	return os.Rename(unfinished, c.kept(p))
}

// makeScratch makes the module that a source is built in, with the replacements
// that the source's own go.mod has.
func makeScratch(ctx context.Context, dir string, s source) error {
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	language, replacements, err := s.read(ctx, dir)
	if err != nil {
		return err
	}
	if s.shared {
		_, shared, err := kubernetes.read(ctx, dir)
		if err != nil {
			return err
		}
		maps.Copy(replacements, shared)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "module scratch\n\ngo %s\n\nrequire %s %s\n\n", language, s.module, s.version)
	for _, path := range slices.Sorted(maps.Keys(replacements)) {
		fmt.Fprintf(&text, "replace %s => %s\n", path, replacements[path])
	}
	return writeFile(filepath.Join(dir, "go.mod"), []byte(text.String()))
}

// read reads a source's go.mod: its version of Go, and which modules it replaces
// by which.
func (s source) read(ctx context.Context, dir string) (language string, replacements map[string]string, err error) {
	downloaded, err := s.download(ctx, dir)
	if err != nil {
		return "", nil, err
	}
	output, err := golang(ctx, dir, "mod", "edit", "-json", downloaded.GoMod)
	if err != nil {
		return "", nil, err
	}
	var gomod struct {
		Go      string
		Replace []struct {
			Old, New struct{ Path, Version string }
		}
	}
	if err := json.Unmarshal(output, &gomod); err != nil {
		return "", nil, fmt.Errorf("read %s: %w", downloaded.GoMod, err)
	}
	replacements = map[string]string{}
	for _, replace := range gomod.Replace {
		path, version := replace.New.Path, replace.New.Version
		if version == "" {
			path, version = replace.Old.Path, s.siblings
		}
		replacements[replace.Old.Path] = path + " " + version
	}
	return gomod.Go, replacements, nil
}

// module is what go mod download tells.
type module struct{ Dir, GoMod, Error string }

func (s source) download(ctx context.Context, dir string) (module, error) {
	var m module
	output, err := golang(ctx, dir, "mod", "download", "-json", s.module+"@"+s.version)
	if len(output) > 0 {
		err = errors.Join(err, json.Unmarshal(output, &m))
	}
	if m.Error != "" {
		err = errors.Join(err, errors.New(m.Error))
	}
	return m, err
}

// golang runs the go command, and returns what it prints.
func golang(ctx context.Context, dir string, args ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, "go", args...)
	command.Dir = dir
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	return output(command)
}

// output runs a command. What it says on its standard error is part of the error.
func output(command *exec.Cmd) ([]byte, error) {
	var messages strings.Builder
	command.Stderr = &messages
	printed, err := command.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(command.Args, " "), err, messages.String())
	}
	return printed, err
}
