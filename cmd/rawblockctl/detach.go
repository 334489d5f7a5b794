package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

An attachment that a pod asks for ends with that pod: delete the pod.

With -o json it prints a list of the attachments: those that are Detached, which are no more,
and those that are Held.`,
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
			d := &detaching{client: client, say: newOutput(command.ErrOrStderr(), outputTable)}
			d.all(ctx, ids, wait)
			if err := newOutput(command.OutOrStdout(), t.output).detached(d.attachments); err != nil {
				return err
			}
			if d.failed != nil {
				return &toldError{d.failed}
			}
			return nil
		},
	}
	command.Flags().BoolVar(&wait, "wait", false, "wait until no process has the device open, for as long as --timeout says")
	return command
}

// detaching detaches devices. What fails does not keep it from the rest.
type detaching struct {
	client *admin.Client
	// say is where it is told what fails, and who holds a device.
	say output
	// attachments are those that are detached or held.
	attachments []hotplug.Attachment
	// failed is the first error.
	failed error
}

func (d *detaching) all(ctx context.Context, ids []string, wait bool) {
	var held []hotplug.Attachment
	for _, id := range ids {
		attachment, err := d.client.Detach(ctx, id)
		if errors.Is(err, volume.ErrInUse) && wait {
			attachment.ID = id
			d.tell(fmt.Errorf("waiting: %w", err), attachment)
			held = append(held, attachment)
			continue
		}
		d.end(attachment, err)
	}
	for _, attachment := range held {
		d.end(d.wait(ctx, attachment))
	}
}

// again is how often it is looked whether a device is still held.
const again = time.Second

// wait waits until the attachment is released, and tells when others hold it.
func (d *detaching) wait(ctx context.Context, held hotplug.Attachment) (hotplug.Attachment, error) {
	for {
		select {
		case <-ctx.Done():
			return held, fmt.Errorf("attachment %s is held still; the plugin releases it once nobody has the device open: %w", held.ID, ctx.Err())
		case <-time.After(again):
		}
		attachment, err := d.client.Detach(ctx, held.ID)
		switch {
		case err == nil:
			return attachment, nil
		case errors.Is(err, volume.ErrNotFound):
			return held, nil // The plugin itself has released it meanwhile.
		case ctx.Err() != nil:
			continue // It ends above.
		case !errors.Is(err, volume.ErrInUse):
			return attachment, err
		case !slices.Equal(attachment.Holders, held.Holders):
			d.tell(fmt.Errorf("waiting: %w", err), attachment)
		}
		held = attachment
	}
}

// end notes what has become of an attachment.
func (d *detaching) end(attachment hotplug.Attachment, err error) {
	if err == nil {
		// Also where the plugin itself released it meanwhile.
		attachment.State, attachment.Reason, attachment.Holders = hotplug.Detached, "", nil
	} else {
		d.tell(err, attachment)
		if d.failed == nil {
			d.failed = err
		}
	}
	if attachment.State != "" {
		d.attachments = append(d.attachments, attachment)
	}
}

func (d *detaching) tell(err error, attachment hotplug.Attachment) {
	say(d.say.w, err)
	d.say.holders(attachment.Holders) //nolint:errcheck,gosec // There is nowhere else to say it.
}

// completeIDs offers the IDs of the attachments to a shell.
func (t *tool) completeIDs(command *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(command.Context(), time.Second)
	defer cancel()
	attachments, err := admin.NewClient(t.socket).List(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var ids []string
	for _, attachment := range attachments {
		if !slices.Contains(given, attachment.ID) {
			ids = append(ids, cobra.CompletionWithDesc(attachment.ID, oneLine(source(attachment)+" in "+attachment.Target.String())))
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
