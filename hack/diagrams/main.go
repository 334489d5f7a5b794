// Diagrams draws the pictures of the documentation from their sources: each
// docs/diagrams/NAME.d2 becomes NAME.svg beside it (https://d2lang.com). The same
// source gives the same picture, so `make verify` sees one that was not drawn anew.
//
//	go run . [-check]
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"oss.terrastruct.com/d2/d2graph"
	"oss.terrastruct.com/d2/d2layouts/d2dagrelayout"
	"oss.terrastruct.com/d2/d2lib"
	"oss.terrastruct.com/d2/d2renderers/d2svg"
	"oss.terrastruct.com/d2/d2themes/d2themescatalog"
	"oss.terrastruct.com/d2/lib/log"
	"oss.terrastruct.com/d2/lib/textmeasure"
)

func main() {
	check := flag.Bool("check", false, "draw nothing, and fail where a picture is not that of its source")
	dir := flag.String("directory", "../../docs/diagrams", "where the sources are")
	flag.Parse()
	if err := run(*dir, *check); err != nil {
		fmt.Fprintln(os.Stderr, "diagrams:", err)
		os.Exit(1)
	}
}

func run(dir string, check bool) error {
	sources, err := filepath.Glob(filepath.Join(dir, "*.d2"))
	if err != nil {
		return err
	}
	if len(sources) == 0 {
		return fmt.Errorf("there is no *.d2 in %s", dir)
	}
	ctx := log.With(context.Background(), slog.New(slog.DiscardHandler))
	var failed error
	for _, source := range sources {
		picture, err := draw(ctx, source)
		if err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}
		path := strings.TrimSuffix(source, ".d2") + ".svg"
		if !check {
			if err := os.WriteFile(path, picture, 0o644); err != nil {
				return err
			}
			continue
		}
		if drawn, err := os.ReadFile(path); err != nil || !bytes.Equal(drawn, picture) {
			failed = errors.Join(failed, fmt.Errorf("%s is not that of its source; run make diagrams", path))
		}
	}
	return failed
}

// draw returns the picture of a source, which looks well on a dark page too.
func draw(ctx context.Context, source string) ([]byte, error) {
	text, err := os.ReadFile(source)
	if err != nil {
		return nil, err
	}
	ruler, err := textmeasure.NewRuler()
	if err != nil {
		return nil, err
	}
	padding, light, dark := int64(20), d2themescatalog.NeutralGrey.ID, d2themescatalog.DarkMauve.ID
	options := &d2svg.RenderOpts{Pad: &padding, ThemeID: &light, DarkThemeID: &dark}
	layout := func(string) (d2graph.LayoutGraph, error) { return d2dagrelayout.DefaultLayout, nil }
	diagram, _, err := d2lib.Compile(ctx, string(text), &d2lib.CompileOptions{Ruler: ruler, LayoutResolver: layout}, options)
	if err != nil {
		return nil, err
	}
	return d2svg.Render(diagram, options)
}
