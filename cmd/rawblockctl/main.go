// Command rawblockctl is the tool of a node's administrator: it asks the plugin that
// runs on the node to attach a device to a container that runs, and to detach it.
// Each command has a file; what they print is in output.go, and with which code they
// end in exit.go.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run runs the command line, and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	tool := &tool{}
	root := tool.root() //nolint:contextcheck // Each command has it from cobra.
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintln(stderr, "rawblockctl:", err) //nolint:errcheck // There is nowhere else to say it.
	if !tool.understood {
		fmt.Fprintln(stderr, "See rawblockctl --help.") //nolint:errcheck // There is nowhere else to say it.
		return exitUsage
	}
	return exitCode(err)
}
