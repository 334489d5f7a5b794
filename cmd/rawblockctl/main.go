// Command rawblockctl is the tool of a node's administrator: it shows what the plugin
// has on the node, finds and mends what is left over, and has devices attached to
// containers that run. It asks the plugin; node.go is what it does where none answers.
// Commands have files; what they print is in output.go and render.go, and with which code
// they end in exit.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/rawblock-csi/rawblock-csi/pkg/config"
)

// version is set by the linker.
var version = "unknown"

func main() {
	if err := config.CheckCaller(); err != nil {
		say(os.Stderr, err)
		os.Exit(exitUsage)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	// The second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run runs the command line, and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	tool := &tool{}
	root := tool.root() //nolint:contextcheck // Each command has it from cobra.
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	command, err := root.ExecuteContextC(ctx)
	var told *toldError
	switch {
	case err == nil:
		return exitDone
	case !tool.understood:
		say(stderr, fmt.Errorf("%w; see %s --help", err, command.CommandPath()))
		return exitUsage
	case !errors.As(err, &told):
		say(stderr, err)
	}
	if ctx.Err() != nil {
		return exitInterrupted
	}
	return exitCode(err)
}

// say tells of an error, in one line.
func say(w io.Writer, err error) { sayText(w, err.Error()) }

func sayText(w io.Writer, text string) {
	fmt.Fprintln(w, "rawblockctl:", oneLine(text)) //nolint:errcheck // There is nowhere else to say it.
}

// toldError is an error that has been told of already.
type toldError struct{ error }

func (e *toldError) Unwrap() error { return e.error }
