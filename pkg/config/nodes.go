package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// document returns the root of the only document, or nil where it says nothing.
func document(content []byte) (*yaml.Node, error) {
	if err := checkText(content); err != nil {
		return nil, err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	var first, second yaml.Node
	if err := decoder.Decode(&first); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, syntaxError(err)
	}
	if err := decoder.Decode(&second); err == nil {
		return nil, fmt.Errorf("line %d: expected one YAML document, found more; remove all but one", second.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxError(err)
	}
	root := target(first.Content[0])
	if root.ShortTag() == nullTag {
		return nil, nil
	}
	return root, nil
}

// checkText refuses what is no text: the YAML library would not say in which line.
func checkText(content []byte) error {
	number := 0
	for line := range bytes.Lines(bytes.TrimPrefix(content, []byte("\uFEFF"))) {
		number++
		if !utf8.Valid(line) || bytes.ContainsFunc(line, isForbidden) {
			return fmt.Errorf("line %d: not text; expected YAML in UTF-8 without control characters", number)
		}
	}
	return nil
}

// isForbidden reports whether a character may not stand in a file (YAML 1.2, 5.1).
func isForbidden(r rune) bool {
	return unicode.IsControl(r) && !strings.ContainsRune("\t\r\n\u0085", r) || strings.ContainsRune("\uFEFF\uFFFE\uFFFF", r)
}

// syntaxError says where there is no YAML. The library counts some lines from 0,
// and leaves out the 0.
func syntaxError(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if !strings.HasPrefix(text, "line ") {
		text = "line 1: " + text
	}
	return fmt.Errorf("no YAML at or next to %s; check the indentation, quotes and brackets there", text)
}

// oneLine returns joined errors as one line of a log.
func oneLine(err error) error {
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}

// The tags of YAML 1.2, 10.3.2, as the library shortens them.
const (
	nullTag  = "!!null"
	boolTag  = "!!bool"
	intTag   = "!!int"
	floatTag = "!!float"
	strTag   = "!!str"
	seqTag   = "!!seq"
	mapTag   = "!!map"
)

// fields are the keys of a mapping.
type fields []field

type field struct {
	key  string
	read func(*yaml.Node) error
}

// read reads a mapping, which errors call what. It returns all errors, not only
// the first.
func (f fields) read(node *yaml.Node, what string) error {
	if node.Kind != yaml.MappingNode || node.ShortTag() != mapTag {
		return fmt.Errorf("line %d: %s stands for %s; expected a mapping with the keys: %s", node.Line, describe(node), what, f.keys())
	}
	seen := make(map[string]int)
	var errs []error
	for i := 0; i < len(node.Content); i += 2 {
		errs = append(errs, f.readKey(target(node.Content[i]), target(node.Content[i+1]), what, seen))
	}
	return errors.Join(errs...)
}

// readKey reads one key. The lines of those that were seen before are in seen.
func (f fields) readKey(key, value *yaml.Node, what string, seen map[string]int) error {
	i := slices.IndexFunc(f, func(field field) bool { return key.ShortTag() == strTag && field.key == key.Value })
	if i < 0 {
		return fmt.Errorf("line %d: %s is unknown in %s; its keys are: %s", key.Line, describe(key), what, f.keys())
	}
	if line, ok := seen[key.Value]; ok {
		return fmt.Errorf("line %d: %q stands in line %d already; remove one", key.Line, key.Value, line)
	}
	seen[key.Value] = key.Line
	if value.ShortTag() == nullTag {
		return fmt.Errorf("line %d: %q has no value; give it one or remove it", key.Line, key.Value)
	}
	return f[i].read(value)
}

func (f fields) keys() string {
	keys := make([]string, len(f))
	for i, field := range f {
		keys[i] = field.key
	}
	return strings.Join(keys, ", ")
}

// into returns what reads a value into a variable.
func into[T any](variable *T, read func(*yaml.Node) (T, error)) func(*yaml.Node) error {
	return func(node *yaml.Node) (err error) {
		*variable, err = read(node)
		return err
	}
}

// pointerTo returns what reads a value that may be absent.
func pointerTo[T any](read func(*yaml.Node) (T, error)) func(*yaml.Node) (*T, error) {
	return func(node *yaml.Node) (*T, error) {
		value, err := read(node)
		return &value, err
	}
}

// listOf returns what reads a list.
func listOf[T any](read func(*yaml.Node) (T, error)) func(*yaml.Node) ([]T, error) {
	return func(node *yaml.Node) ([]T, error) {
		if node.Kind != yaml.SequenceNode || node.ShortTag() != seqTag {
			return nil, fmt.Errorf("line %d: %s is not a list; expected entries in [] or each in a line after a hyphen", node.Line, describe(node))
		}
		list := make([]T, len(node.Content))
		var errs []error
		for i, entry := range node.Content {
			var err error
			if entry = target(entry); entry.ShortTag() == nullTag {
				err = fmt.Errorf("line %d: the list has an entry without a value; give it one or remove it", entry.Line)
			} else {
				list[i], err = read(entry)
			}
			errs = append(errs, err)
		}
		return list, errors.Join(errs...)
	}
}

// target returns what an alias stands for. The anchor of an alias cannot be an
// alias, and the depth of what is read is that of the tables of fields, so an
// anchor within itself is no endless loop.
func target(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

// describe names a node in an error, with the tag that somebody gave it.
func describe(node *yaml.Node) string {
	tag := ""
	if node.Style&yaml.TaggedStyle != 0 {
		tag = node.ShortTag() + " "
	}
	switch node.Kind {
	case yaml.MappingNode:
		return tag + "a mapping"
	case yaml.SequenceNode:
		return tag + "a list"
	default:
		return tag + strconv.Quote(node.Value)
	}
}

// wrong is the error that a value is not what it must be.
func wrong(node *yaml.Node, what, expected string) error {
	return fmt.Errorf("line %d: %s is not %s; expected %s", node.Line, describe(node), what, expected)
}
