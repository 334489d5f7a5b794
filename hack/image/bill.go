package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"time"

	cyclonedx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// bill writes the bill of materials of an image: the commands, and of each the
// modules that the compiler says are in it, which is what an attacker would find,
// and not what a lock file lists.
func (b *build) bill(commands string, platform v1.Platform, image v1.Image) error {
	digest, err := image.Digest()
	if err != nil {
		return err
	}
	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{
		Timestamp: b.created.Format(time.RFC3339),
		Component: &cyclonedx.Component{
			BOMRef: "image", Type: cyclonedx.ComponentTypeContainer, Name: b.name, Version: b.version,
			Hashes: &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: digest.Hex}},
		},
	}
	entries, err := os.ReadDir(commands)
	if err != nil {
		return err
	}
	components := []cyclonedx.Component{}
	seen := map[string]bool{}
	for _, entry := range entries {
		command, modules, err := b.describe(filepath.Join(commands, entry.Name()))
		if err != nil {
			return err
		}
		for _, component := range append([]cyclonedx.Component{command}, modules...) {
			if !seen[component.BOMRef] {
				components = append(components, component)
			}
			seen[component.BOMRef] = true
		}
		refs := []string{}
		for _, module := range modules {
			refs = append(refs, module.BOMRef)
		}
		bom.Dependencies = appendDependency(bom.Dependencies, command.BOMRef, refs)
	}
	bom.Components = &components
	file, err := os.Create(filepath.Join(b.output, "rawblock-csi-"+platform.Architecture+".cdx.json"))
	if err != nil {
		return err
	}
	if err := cyclonedx.NewBOMEncoder(file, cyclonedx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

func appendDependency(to *[]cyclonedx.Dependency, ref string, on []string) *[]cyclonedx.Dependency {
	all := []cyclonedx.Dependency{}
	if to != nil {
		all = *to
	}
	all = append(all, cyclonedx.Dependency{Ref: ref, Dependencies: &on})
	return &all
}

// describe returns a binary, and what it was built from.
func (b *build) describe(path string) (cyclonedx.Component, []cyclonedx.Component, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return cyclonedx.Component{}, nil, err
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return cyclonedx.Component{}, nil, err
	}
	sum := sha256.Sum256(data)
	command := cyclonedx.Component{
		BOMRef: filepath.Base(path), Type: cyclonedx.ComponentTypeApplication, Name: filepath.Base(path), Version: b.version,
		Hashes: &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}},
	}
	modules := []cyclonedx.Component{module("stdlib", strings.TrimPrefix(info.GoVersion, "go"))}
	for _, dependency := range info.Deps {
		if dependency.Replace != nil {
			dependency = dependency.Replace
		}
		modules = append(modules, module(dependency.Path, dependency.Version))
	}
	return command, modules, nil
}

// module is a module of Go, named as scanners know it
// (https://github.com/package-url/purl-spec).
func module(path, version string) cyclonedx.Component {
	url := "pkg:golang/" + path + "@" + version
	return cyclonedx.Component{BOMRef: url, Type: cyclonedx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: url}
}
