package vm

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/test/vm/wire"
)

// testLimit bounds a package's tests in a guest.
const testLimit = 20 * time.Minute

// runVariable narrows the tests that run inside, as -run does those outside.
const runVariable = "RAWBLOCK_VM_RUN"

// module is the path that the packages of Test are in.
const module = "github.com/rawblock-csi/rawblock-csi/"

// Test runs the tests of a package of this module in the guest, such as
// test/vm/removal; args are flags of its test binary. Its output is passed on, each
// line with the name of this test, which fails where one of them fails or is skipped.
func (g *Guest) Test(t testing.TB, name string, args ...string) {
	t.Helper()
	g.TestWith(t, nil, name, args...)
}

// TestWith does the same with additions to the environment.
func (g *Guest) TestWith(t testing.TB, environment []string, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	defer cancel()
	name = strings.TrimPrefix(name, "./")
	if only := os.Getenv(runVariable); only != "" {
		args = append(args, "-test.run="+only)
	}
	inside := g.putTests(ctx, t, name)
	results := watch(t.Name())
	err := g.Execute(ctx, results, wire.Command{
		Args:        append([]string{inside, "-test.v", "-test.timeout=" + testLimit.String()}, args...),
		Environment: environment, Dir: "/tmp",
	})
	results.finish()
	switch {
	case err != nil:
		t.Errorf("the tests of %s in the guest: %v\n%s", name, err, results.failures)
	case len(results.skipped) > 0:
		t.Errorf("tests of %s were skipped in the guest: %s", name, strings.Join(results.skipped, ", "))
	case results.passed == 0:
		t.Errorf("no test of %s ran in the guest", name)
	}
	t.Logf("%s: %d tests passed in the guest.", name, results.passed)
}

// putTests builds the tests of a package and copies them into the guest.
func (g *Guest) putTests(ctx context.Context, t testing.TB, name string) (path string) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "tests")
	must(t, build(ctx, binary, "test", "-c", "-tags=crash", module+name))
	path = "/tmp/" + filepath.Base(name) + ".test"
	must(t, g.Put(ctx, binary, path))
	return path
}

// Bench runs the benchmarks of a package in the guest, each as often as times says
// (-test.benchtime), and writes what they say to output.
func (g *Guest) Bench(t testing.TB, output io.Writer, name, times string) {
	t.Helper()
	path := g.putTests(t.Context(), t, name)
	must(t, g.Execute(t.Context(), output, wire.Command{
		Args: []string{path, "-test.run=^$", "-test.bench=.", "-test.benchtime=" + times, "-test.timeout=0"}, Dir: "/tmp",
	}))
}

// watcher passes the output of tests on, counts, and keeps what those print that fail.
type watcher struct {
	*io.PipeWriter
	done     chan struct{}
	passed   int
	skipped  []string
	failures string
}

var (
	result = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+)`)
	begins = regexp.MustCompile(`^=== RUN\s+[^/]+$`)
)

func watch(test string) *watcher {
	reader, writer := io.Pipe()
	w := &watcher{PipeWriter: writer, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		lines := bufio.NewReader(reader)
		var current strings.Builder // What the test prints that runs, with those in it.
		var failed bool
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				w.failures += current.String() // Also where it ended before its time.
				return
			}
			if begins.MatchString(line) {
				if failed {
					w.failures += current.String()
				}
				current.Reset()
				failed = false
			}
			current.WriteString(line)
			io.WriteString(os.Stdout, test+": "+line) // Guests run side by side.
			found := result.FindStringSubmatch(line)
			if found == nil {
				continue
			}
			switch found[1] {
			case "PASS":
				w.passed++
			case "FAIL":
				failed = true
			case "SKIP":
				w.skipped = append(w.skipped, found[2])
			}
		}
	}()
	return w
}

func (w *watcher) finish() {
	w.Close()
	<-w.done
}
