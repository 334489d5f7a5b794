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
	d := &detaching{tool: t}
	command := &cobra.Command{
		Use:   "detach ID...",
		Short: "Take devices away from their containers",
		Long: `Take devices away from the containers that they are attached to. The IDs are those of
rawblockctl list.

The container can no longer open the device from then on, by whatever node. What its
programs have open goes on working: the device is then not released, and the processes are
named. Repeat the command once they have closed it or ended, or have it wait (--wait). The
plugin also releases the device by itself then.

With --force those processes lose the device as well, where it is one of device-mapper: a
logical volume, or an encrypted volume. Whatever they read or write from then on fails with
an I/O error, as if the disk had died; what they wrote before and synced is on the medium.
Nothing on it is destroyed, but programs rarely survive that, and a filesystem of theirs may need
a check. It asks for the volume's ID, or the path of the device, as the list has it; a program
gives that with --confirm. The volume can be used again once they have closed it and it was
staged anew; do not load another table into the mapping before, which would give it back to them.
Of other devices nothing can be taken from a process: end it.

An attachment that a pod asks for ends with that pod: delete the pod. If that then hangs because a
process has the device open, --force helps here too.

With -o json it prints a list of the attachments: those that are Detached, which are no more,
and those that are Held.`,
		Example: `  rawblockctl detach k3jq7dza
  rawblockctl detach --wait --timeout 5m k3jq7dza
  rawblockctl detach --force k3jq7dza --confirm vg0/pvc-8f0c@node-1`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: t.completeIDs,
		RunE:              func(command *cobra.Command, ids []string) error { return d.run(command, ids) },
	}
	flags := command.Flags()
	flags.BoolVar(&d.force, "force", false, "take the device also from the processes that have it open: their I/O fails")
	flags.StringVar(&d.confirm, "confirm", "", "with --force: the ID of the volume, or the path of the device: do not ask")
	flags.BoolVar(&d.await, "wait", false, "wait until no process has the device open, for as long as --timeout says")
	command.MarkFlagsMutuallyExclusive("force", "wait")
	complete(command, "confirm")
	return command
}

func (d *detaching) run(command *cobra.Command, ids []string) error {
	ctx, cancel, client, err := d.begin(command.Context())
	if err != nil {
		return err
	}
	defer cancel()
	d.detach, d.say = client.Detach, newOutput(command.ErrOrStderr(), outputTable)
	if d.force {
		all, err := client.List(ctx)
		if err != nil {
			return err
		}
		if err := d.confirmRevoke(command, ids, all); err != nil {
			return err
		}
		// A person may have taken their time: --timeout is for the plugin.
		ctx, cancel = d.limit(command.Context())
		defer cancel()
		d.detach = client.Revoke
	}
	d.all(ctx, ids, d.await)
	if err := newOutput(command.OutOrStdout(), d.output).detached(d.attachments); err != nil {
		return err
	}
	if d.failed != nil {
		return &toldError{d.failed}
	}
	return nil
}

// confirmRevoke shows who would lose the device of an attachment, and has it confirmed.
func (d *detaching) confirmRevoke(command *cobra.Command, ids []string, all []hotplug.Attachment) error {
	if len(ids) > 1 {
		return fmt.Errorf("%w: --force takes the device of one attachment, not of %d", volume.ErrInvalid, len(ids))
	}
	at := slices.IndexFunc(all, func(a hotplug.Attachment) bool { return a.ID == ids[0] })
	if at < 0 {
		return fmt.Errorf("%w: there is no attachment %s on this node; see rawblockctl list", volume.ErrNotFound, ids[0])
	}
	if d.confirm == "" {
		if err := d.say.holders(all[at].Holders); err != nil {
			return err
		}
	}
	warning := fmt.Sprintf("Whatever has %s open in %s gets I/O errors from now on.", source(all[at]), all[at].Target)
	return d.confirmed(command.Context(), command, d.confirm, source(all[at]), oneLine(warning))
}

// detaching detaches devices. What fails does not keep it from the rest.
type detaching struct {
	*tool
	force, await bool
	confirm      string
	// detach asks the plugin to.
	detach func(ctx context.Context, id string) (hotplug.Attachment, error)
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
		attachment, err := d.detach(ctx, id)
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
		attachment, err := d.detach(ctx, held.ID)
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
