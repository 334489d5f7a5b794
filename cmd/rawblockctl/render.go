package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

// isData says that the output is for programs.
func (o output) isData() bool { return o.format == outputJSON || o.format == outputYAML }

// data prints a value for programs. YAML has the keys of JSON, in their order.
func (o output) data(value any) error {
	if o.format == outputJSON {
		return o.json(value)
	}
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	// JSON is YAML, written in another style.
	var node yaml.Node
	if err := yaml.Unmarshal(text, &node); err != nil {
		return err
	}
	restyle(&node)
	encoder := yaml.NewEncoder(o.w)
	encoder.SetIndent(2)
	if err := encoder.Encode(&node); err != nil {
		return err
	}
	return encoder.Close()
}

func restyle(node *yaml.Node) {
	if node.Kind == yaml.ScalarNode || len(node.Content) > 0 {
		node.Style = 0 // What is empty stays [] and {}.
	}
	for _, child := range node.Content {
		restyle(child)
	}
}

// colour is an escape sequence of a terminal (ECMA-48, 8.3.117).
type colour string

const (
	plain  colour = ""
	bold   colour = "1"
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
)

// isTerminal reports whether somebody sees what is written.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd())) //nolint:gosec // Descriptors are small.
}

// isTerminalInput reports whether somebody can type.
func isTerminalInput(r io.Reader) bool {
	file, ok := r.(*os.File)
	return ok && term.IsTerminal(int(file.Fd())) //nolint:gosec // Descriptors are small.
}

// coloured reports whether there is to be colour: on a terminal, unless its user does
// not want any (no-color.org).
func coloured(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// paint gives a text a colour, where there is to be one.
func (o output) paint(text string, c colour) string {
	if c == plain || text == "" || !o.colour {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// cell is a cell of a table.
type cell struct {
	text string
	colour
}

// grid prints rows of cells under headings.
func (o output) grid(headings []string, rows [][]cell) error {
	widths := make([]int, len(headings))
	all := make([][]cell, 0, len(rows)+1)
	heading := make([]cell, len(headings))
	for i, text := range headings {
		heading[i] = cell{text, bold}
	}
	for _, row := range append([][]cell{heading}, rows...) {
		line := make([]cell, len(row))
		for i, one := range row {
			one.text = oneLine(one.text)
			if one.text == "" {
				one.text = "-"
			}
			line[i] = one
			widths[i] = max(widths[i], utf8.RuneCountInString(one.text))
		}
		all = append(all, line)
	}
	for _, row := range all {
		line := new(strings.Builder)
		for i, one := range row {
			line.WriteString(o.paint(one.text, one.colour))
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(one.text)+2))
			}
		}
		if _, err := fmt.Fprintln(o.w, line); err != nil {
			return err
		}
	}
	return nil
}

// title prints the title of a part of a page, with a line before it.
func (o output) title(text string) error {
	_, err := fmt.Fprintf(o.w, "\n%s\n", o.paint(text, bold))
	return err
}

// text prints a line with a colour.
func (o output) text(c colour, format string, args ...any) error {
	_, err := fmt.Fprintln(o.w, o.paint(oneLine(fmt.Sprintf(format, args...)), c))
	return err
}
