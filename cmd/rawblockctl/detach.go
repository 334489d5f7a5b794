package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func (t *tool) detach() *cobra.Command {
	var wait bool
	command := &cobra.Command{
		Use:   "detach ID...",
		Short: "Take devices away from their containers",
		Long: `Take devices away from the containers that they are attached to. The IDs are those of
rawblockctl list.

The container can no longer open the device from then on, by whatever node. What its
programs have open goes on working, which nothing can change: the device is then not released,
and the processes are named. Repeat the command once they have closed it or ended, or have
it wait (--wait). The plugin also releases the device by itself then.

An attachment that a pod asks for ends with that pod: delete the pod.`,
		Example: `  rawblockctl detach k3jq7dza
  rawblockctl detach --wait --timeout 5m k3jq7dza`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: t.completeIDs,
		RunE: func(command *cobra.Command, ids []string) error {
			ctx, cancel, client, err := t.begin(command.Context())
			if err != nil {
				return err
			}
			defer cancel()
			detaching := detaching{client, wait, newOutput(command.OutOrStdout(), t.output), newOutput(command.ErrOrStderr(), outputTable)}
			var failed []error
			for _, id := range ids {
				failed = append(failed, detaching.detach(ctx, id))
			}
			return errors.Join(failed...)
		},
	}
	command.Flags().BoolVar(&wait, "wait", false, "wait until no process has the device open, as long as --timeout says")
	return command
}

// detaching detaches devices.
type detaching struct {
	client *admin.Client
	wait   bool
	// out is where results go, and say where it is said why it takes so long.
	out, say output
}

// again is how often it is looked whether a device is still held.
const again = time.Second

func (d detaching) detach(ctx context.Context, id string) error {
	said := ""
	for {
		attachment, err := d.client.Detach(ctx, id)
		if err == nil {
			return d.out.detached(attachment)
		}
		if said != "" && errors.Is(err, volume.ErrNotFound) {
			// The plugin itself has released it meanwhile.
			return d.out.detached(hotplug.Attachment{ID: id})
		}
		if !errors.Is(err, volume.ErrInUse) {
			return err
		}
		if text := err.Error(); text != said {
			said = text
			if err := d.say.holders(attachment); err != nil {
				return err
			}
		}
		if !d.wait {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for attachment %s: %w; last: %w", id, ctx.Err(), err)
		case <-time.After(again):
		}
	}
}

// completeIDs offers the IDs of the attachments to a shell.
func (t *tool) completeIDs(command *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(command.Context(), time.Second)
	defer cancel()
	attachments, err := admin.NewClient(t.socket).List(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var ids []string
	for _, attachment := range attachments {
		ids = append(ids, cobra.CompletionWithDesc(attachment.ID, source(attachment)+" in "+attachment.Target.String()))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
