package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// tool is what all commands have in common.
type tool struct {
	socket  string
	timeout time.Duration
	output  string
	nodeFlags
	// understood says that the command line was right, and a command has begun.
	understood bool
}

// The formats of the output.
const (
	outputTable = "table"
	outputWide  = "wide"
	outputJSON  = "json"
	outputYAML  = "yaml"
)

var outputs = []string{outputTable, outputWide, outputJSON, outputYAML}

func (t *tool) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "rawblockctl",
		Short: "See and mend what rawblock-csi has on this node",
		Long: `rawblockctl is the tool of a node's administrator. It shows what the rawblock-csi plugin has
on this node and who uses it, finds and mends what is left over, and gives raw block devices to
containers that are already running.

In trouble, begin with:

  rawblockctl status            what there is, and what is wrong
  rawblockctl doctor            what is left over, what that means, and what to type
  rawblockctl inspect VOLUME    the whole way of a volume, from its medium to its container

It needs root. It asks the plugin; where none answers, what only looks, and doctor --fix, go
to the media and the kernel themselves, and say so. With Kubernetes, the plugin's image has it:

  kubectl -n rawblock-csi exec POD-OF-THE-NODE -c plugin -- /rawblockctl status

` + exitHelp,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		// An error is one line.
		DisableSuggestions: true,
	}
	root.SetVersionTemplate(versionTemplate)
	flags := root.PersistentFlags()
	flags.StringVar(&t.socket, "socket", "/run/rawblock-csi/admin.sock", "the plugin's admin socket: admin.sock in its --state-dir")
	flags.DurationVar(&t.timeout, "timeout", 30*time.Second, "how long to wait until it is done; 0: for ever")
	flags.StringVarP(&t.output, "output", "o", outputTable, "table, wide (more columns), json or yaml (stable, for programs)")
	t.add(flags)
	complete(root, "output", outputs...)
	root.AddCommand(t.status(), t.volumes(), t.disks(), t.capacity(), t.inspect(), t.doctor(), t.wipe(), t.release(),
		t.attach(), t.detach(), t.list(), t.version())
	return root
}

// versionTemplate is what --version prints.
const versionTemplate = "{{.Name}} {{.Version}}\n"

func (t *tool) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of rawblockctl",
		Long:  "Print the version of rawblockctl. It and the plugin should be of the same version.",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			t.understood = true
			_, err := fmt.Fprintln(command.OutOrStdout(), command.Root().Name(), version)
			return err
		},
	}
}

// complete offers values of a flag to a shell.
func complete(command *cobra.Command, flag string, values ...string) {
	err := command.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // There is no such flag: a mistake in this program.
	}
}

// begin returns what a command calls the plugin with. From here on, the command line
// counts as understood.
func (t *tool) begin(ctx context.Context) (context.Context, context.CancelFunc, *admin.Client, error) {
	if err := t.understand(); err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := t.limit(ctx)
	return ctx, cancel, admin.NewClient(t.socket), nil
}

// understand checks what all commands have in common.
func (t *tool) understand() error {
	t.understood = true
	if !slices.Contains(outputs, t.output) {
		return fmt.Errorf("%w: --output is %q; expected one of %q", volume.ErrInvalid, t.output, outputs)
	}
	if t.timeout < 0 {
		return fmt.Errorf("%w: --timeout is %s; expected 0 or more", volume.ErrInvalid, t.timeout)
	}
	return nil
}

// limit returns a context that ends when --timeout says.
func (t *tool) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if t.timeout == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, t.timeout)
}
