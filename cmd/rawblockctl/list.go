package main

import "github.com/spf13/cobra"

func (t *tool) list() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "Show what is attached to the containers of this node",
		Long: `Show the devices that are attached to running containers of this node, those that wait for
their container, and those that were taken away and are still held.

States:
  Attached   the container can open the device
  Waiting    the container does not run, or not yet
  Refused    it cannot be made as it is wanted; tried again every 10 seconds
  Held       the container can no longer open the device, but has it open
  Lost       the disk has gone from the node
  Pending    being made
  Detaching  being taken away`,
		Example: `  rawblockctl list
  rawblockctl list -o wide
  rawblockctl list -o json | jq -r '.[] | select(.state != "Attached") | .reason'`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			ctx, cancel, client, err := t.begin(command.Context())
			if err != nil {
				return err
			}
			defer cancel()
			attachments, err := client.List(ctx)
			if err != nil {
				return err
			}
			return newOutput(command.OutOrStdout(), t.output).list(attachments)
		},
	}
}
