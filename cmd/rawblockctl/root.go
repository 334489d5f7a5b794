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
	// understood says that the command line was right, and a command has begun.
	understood bool
}

// The formats of the output.
const (
	outputTable = "table"
	outputWide  = "wide"
	outputJSON  = "json"
)

var outputs = []string{outputTable, outputWide, outputJSON}

func (t *tool) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "rawblockctl",
		Short: "Give raw block devices to containers that run, and take them away",
		Long: `rawblockctl asks the rawblock-csi plugin of this node to give a raw block device to a
container that is already running, or to take it away, without restarting the container.

It needs root, and a plugin that runs. With Kubernetes, the plugin's image has it:

  kubectl -n rawblock-csi exec POD-OF-THE-NODE -c plugin -- /rawblockctl list

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
	flags.StringVarP(&t.output, "output", "o", outputTable, "table, wide (more columns) or json (stable, for programs)")
	complete(root, "output", outputs...)
	root.AddCommand(t.attach(), t.detach(), t.list(), t.version())
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
	t.understood = true
	if !slices.Contains(outputs, t.output) {
		return nil, nil, nil, fmt.Errorf("%w: --output is %q; expected one of %q", volume.ErrInvalid, t.output, outputs)
	}
	if t.timeout < 0 {
		return nil, nil, nil, fmt.Errorf("%w: --timeout is %s; expected 0 or more", volume.ErrInvalid, t.timeout)
	}
	cancel := context.CancelFunc(func() {})
	if t.timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, t.timeout)
	}
	return ctx, cancel, admin.NewClient(t.socket), nil
}
