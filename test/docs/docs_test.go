// Package docs_test reads all pages as a user does: it follows their links, and
// asks of each block of commands who has run it.
package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"go.yaml.in/yaml/v3"
)

const root = "../.."

// page is a page of the documentation.
type page struct {
	path string
	// text is its text without blocks of code, line by line as in the file.
	text string
	// blocks are its blocks of code.
	blocks []block
	// anchors are those of its headings.
	anchors map[string]bool
}

// block is a block of code.
type block struct {
	line           int
	language, text string
	// before is the last line before it that is not empty.
	before string
}

var fence = regexp.MustCompile("^\\s*```(.*)$")

// pages reads all pages of the tree.
func pages(t *testing.T) map[string]*page {
	t.Helper()
	found := map[string]*page{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == ".git" || entry.Name() == "bin" || entry.Name() == "dist") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			found[filepath.Clean(path)] = parse(path, string(data))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 20 {
		t.Fatalf("there are only %d pages", len(found))
	}
	return found
}

func parse(path, data string) *page {
	p := &page{path: path, anchors: map[string]bool{}}
	var open *block
	last := ""
	for number, line := range strings.Split(data, "\n") {
		mark := fence.FindStringSubmatch(line)
		switch {
		case open != nil && mark != nil:
			p.blocks = append(p.blocks, *open)
			open, last = nil, line
		case open != nil:
			open.text += line + "\n"
		case mark != nil:
			open = &block{line: number + 1, language: mark[1], before: last}
		default:
			if heading, ok := strings.CutPrefix(line, "#"); ok {
				p.addAnchor(strings.TrimSpace(strings.TrimLeft(heading, "#")))
			}
			p.text += line
			if strings.TrimSpace(line) != "" {
				last = strings.TrimSpace(line)
			}
		}
		p.text += "\n"
	}
	return p
}

// addAnchor adds the anchor of a heading as GitHub makes it: lower case, without
// punctuation, with hyphens for blanks, and numbered where it is not the first.
func (p *page) addAnchor(heading string) {
	heading = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(heading, "$1")
	anchor := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
			return unicode.ToLower(r)
		case r == ' ':
			return '-'
		}
		return -1
	}, heading)
	for count, name := 0, anchor; ; name = fmt.Sprintf("%s-%d", anchor, count) {
		if !p.anchors[name] {
			p.anchors[name] = true
			return
		}
		count++
	}
}

var (
	inlineCode = regexp.MustCompile("`[^`]*`")
	target     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
)

// Each link leads somewhere, and its anchor to a heading.
func TestLinks(t *testing.T) {
	all := pages(t)
	followed := 0
	for path, p := range all {
		for number, line := range strings.Split(p.text, "\n") {
			for _, match := range target.FindAllStringSubmatch(inlineCode.ReplaceAllString(line, "code"), -1) {
				link := match[1]
				if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
					continue // What others publish may go at any time.
				}
				followed++
				if err := follow(all, p, link); err != nil {
					t.Errorf("%s:%d: %v", path, number+1, err)
				}
			}
		}
	}
	if followed < 100 {
		t.Errorf("only %d links were followed", followed)
	}
}

func follow(all map[string]*page, from *page, link string) error {
	name, anchor, _ := strings.Cut(link, "#")
	path := filepath.Clean(from.path)
	if name != "" {
		path = filepath.Join(filepath.Dir(from.path), name)
		if _, err := os.Stat(path); err != nil {
			return err
		}
	}
	if to := all[path]; anchor != "" && to != nil && !to.anchors[anchor] {
		return fmt.Errorf("%s has no heading for #%s", path, anchor)
	}
	return nil
}

// No page is an island: each is linked from another one.
func TestPagesAreFound(t *testing.T) {
	all := pages(t)
	linked := map[string]bool{}
	for _, p := range all {
		for _, match := range target.FindAllStringSubmatch(p.text, -1) {
			name, _, _ := strings.Cut(match[1], "#")
			linked[filepath.Join(filepath.Dir(p.path), name)] = true
		}
	}
	for path := range all {
		if !linked[path] && strings.HasPrefix(path, filepath.Join(root, "docs")) && filepath.Base(path) != "README.md" {
			t.Errorf("nothing links to %s", path)
		}
	}
}

// generated is the page of what rawblockctl says of itself, which has its own test.
const generated = "rawblockctl.md"

// The note above a block of commands: the test that runs it, or why none does.
var (
	runBy  = regexp.MustCompile(`^<!-- run by (Test\w+|make [\w-]+) -->$`)
	notRun = regexp.MustCompile(`^<!-- not run: .{10,} -->$`)
)

// Each block of commands is run by a test that is there, or says why it is not.
func TestCommandBlocks(t *testing.T) {
	tests := testNames(t)
	byTest, not := 0, 0
	for path, p := range pages(t) {
		for _, b := range p.blocks {
			where := fmt.Sprintf("%s:%d", path, b.line)
			switch b.language {
			case "sh":
			case "yaml", "json", "text", "promql":
				continue
			case "":
				if looksLikeCommands(b.text) && filepath.Base(path) != generated {
					t.Errorf("%s: a block of commands without a language", where)
				}
				continue
			default:
				t.Errorf("%s: %q is no language of a block here", where, b.language)
				continue
			}
			note := runBy.FindStringSubmatch(b.before)
			switch {
			case notRun.MatchString(b.before):
				not++
			case note == nil:
				t.Errorf("%s: above the block stands neither <!-- run by TestX --> nor <!-- not run: REASON -->", where)
			case !tests[note[1]]:
				t.Errorf("%s: there is no %s", where, note[1])
			default:
				byTest++
			}
		}
	}
	t.Logf("%d blocks of commands are run by tests, %d are not and say why.", byTest, not)
}

func looksLikeCommands(text string) bool {
	return regexp.MustCompile(`(?m)^(\$ )?(kubectl|rawblockctl|make|helm) `).MatchString(text)
}

// testNames are the tests of the tree, and the targets of its Makefile.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		for _, match := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(data), -1) {
			names[match[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range regexp.MustCompile(`(?m)^([\w-]+):.*## `).FindAllStringSubmatch(string(makefile), -1) {
		names["make "+match[1]] = true
	}
	return names
}

// A page that says that a test shows something names one that is there.
func TestNamedTests(t *testing.T) {
	tests := testNames(t)
	for path, p := range pages(t) {
		for _, name := range regexp.MustCompile("`(Test[A-Z]\\w+)`").FindAllStringSubmatch(p.text, -1) {
			if !tests[name[1]] {
				t.Errorf("%s: there is no %s", path, name[1])
			}
		}
	}
}

// What claims to be a language is one.
func TestBlocksAreWellFormed(t *testing.T) {
	for path, p := range pages(t) {
		for _, b := range p.blocks {
			where := fmt.Sprintf("%s:%d", path, b.line)
			switch b.language {
			case "sh":
				check := exec.CommandContext(t.Context(), "bash", "-n")
				check.Stdin = strings.NewReader(b.text)
				if output, err := check.CombinedOutput(); err != nil {
					t.Errorf("%s: %v: %s", where, err, output)
				}
			case "yaml", "json": // YAML has JSON in it.
				decoder := yaml.NewDecoder(strings.NewReader(b.text))
				for {
					var value any
					err := decoder.Decode(&value)
					if err != nil {
						if err.Error() != "EOF" {
							t.Errorf("%s: %v", where, err)
						}
						break
					}
				}
			}
		}
	}
}
