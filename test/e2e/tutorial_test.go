package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// step is a block of commands of the tutorial, and what the tutorial shows that they
// print, if it does.
type step struct{ commands, prints string }

// stepsOf are the blocks of a document: those of sh, each with the block of text that
// may follow before the next.
func stepsOf(document string) []step {
	var steps []step
	for _, block := range regexp.MustCompile("(?ms)^```(sh|text)\n(.*?)^```$").FindAllStringSubmatch(document, -1) {
		if block[1] == "sh" {
			steps = append(steps, step{commands: block[2]})
		} else if len(steps) > 0 {
			steps[len(steps)-1].prints += block[2]
		}
	}
	return steps
}

// Every command of docs/tutorial.md works, in its order, and prints what stands there.
func TestTutorial(t *testing.T) {
	document, err := os.ReadFile("../../docs/tutorial.md")
	must(t, err)
	steps := stepsOf(string(document))
	shown := 0
	for _, step := range steps {
		shown += len(step.prints)
	}
	if len(steps) < 5 || shown == 0 {
		t.Fatalf("the tutorial has %d blocks of commands, and shows %d bytes of what they print", len(steps), shown)
	}

	// It sees that nothing is left on the nodes.
	newScene(t)
	dir := tutorialDir(t)
	t.Cleanup(func() { endTutorial(t) })
	for _, step := range steps {
		printed := runStep(t, dir, step.commands)
		if !strings.HasSuffix(printed, step.prints) {
			t.Fatalf("the tutorial shows %q, but at the end of this stands something else:\n%s", step.prints, printed)
		}
	}
}

// tutorialDir is the root of the repository as far as the tutorial sees it: files
// that it makes do not stay there.
func tutorialDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	deploy, err := filepath.Abs("../../deploy")
	must(t, err)
	must(t, os.Symlink(deploy, filepath.Join(dir, "deploy")))
	return dir
}

// stepTime bounds the commands of a step.
const stepTime = 10 * time.Minute

// runStep runs commands as a user types them, but stops at the first that fails. It also
// serves when the test is over.
func runStep(t *testing.T, dir, commands string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), stepTime)
	defer cancel()
	command := exec.CommandContext(ctx, "sh", "-ec", commands)
	command.Dir = dir
	var printed, messages strings.Builder
	command.Stdout, command.Stderr = &printed, &messages
	if err := command.Run(); err != nil {
		t.Fatalf("%v:\n%s\n%s%s", err, commands, printed.String(), messages.String())
	}
	return printed.String()
}

// endTutorial deletes what a tutorial that failed has left, and deploys again what the
// other tests need: the tutorial installs less.
func endTutorial(t *testing.T) {
	// The test's own context has ended.
	left := exec.Command("kubectl", "delete", "--ignore-not-found", "pod/tutorial", "pvc/tutorial", "storageclass/tutorial")
	if printed, err := left.CombinedOutput(); err != nil {
		t.Errorf("delete what the tutorial made: %v\n%s", err, printed)
	}
	if _, err := cluster("up"); err != nil {
		t.Error(err)
	}
}
