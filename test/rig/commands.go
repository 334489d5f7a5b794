package rig

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pagesVariable names the directory of the documentation, for tests that run elsewhere than
// in the tree.
const pagesVariable = "RAWBLOCK_DOCS"

// Commands are the blocks of commands of a page of the documentation that say that a test
// runs them, in their order.
func Commands(t testing.TB, page, test string) (blocks []string) {
	t.Helper()
	document, err := os.ReadFile(filepath.Join(os.Getenv(pagesVariable), page))
	Must(t, err)
	mark := regexp.MustCompile("(?ms)^ *<!-- run by " + test + " -->\n *```sh\n(.*?)^ *```$")
	for _, block := range mark.FindAllStringSubmatch(string(document), -1) {
		blocks = append(blocks, block[1])
	}
	if len(blocks) == 0 {
		t.Fatalf("%s has no commands for %s", page, test)
	}
	return blocks
}

// Replace replaces what a page has for what the reader has: old and new words in turn,
// each of which must be there.
func Replace(t testing.TB, commands string, words ...string) string {
	t.Helper()
	for i := 0; i < len(words); i += 2 {
		if !strings.Contains(commands, words[i]) {
			t.Errorf("%q is not in the commands:\n%s", words[i], commands)
		}
		commands = strings.ReplaceAll(commands, words[i], words[i+1])
	}
	return commands
}
