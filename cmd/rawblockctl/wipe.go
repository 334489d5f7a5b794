package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/erase"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// wiping is the command line of wipe.
type wiping struct {
	*tool
	confirm, method string
	withVolumes     bool
}

func (t *tool) wipe() *cobra.Command {
	w := &wiping{tool: t}
	command := &cobra.Command{
		Use:   "wipe DISK",
		Short: "Destroy all that is on a disk, so that a pool can have it",
		Long: `Destroy all that is on a whole disk: a disk of a former owner, that a pool is to have, or one of a
pool that is not configured any more.

It refuses a disk that anybody uses: one that is mounted, is swap, or is a part of LVM, RAID or a
mapping, has a partition that is open, or is in a pool of the plugin. One that has volumes of a
pool takes --with-volumes.

It shows what is on the disk, and asks for the kernel's name of it, such as sdb. A program gives
that with --confirm.

It goes from the end of the disk to its beginning, so that one that is wiped in part is not taken
for a free one, and reads back what it has wiped. It may be interrupted, and repeated.
--timeout does not count unless it is given. It needs no plugin: a disk that it has claimed no
plugin takes.

With -o json or yaml it prints an object with the keys disk, size and wiped.`,
		Example: `  rawblockctl wipe /dev/disk/by-id/nvme-eui.0000000000000001
  rawblockctl wipe /dev/sdb --method zero --confirm sdb`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: t.completeDisks,
		RunE:              func(command *cobra.Command, args []string) error { return w.run(command, args[0]) },
	}
	flags := command.Flags()
	flags.StringVar(&w.confirm, "confirm", "", "the kernel's name of the disk, such as sdb: do not ask")
	flags.StringVar(&w.method, "method", "discard", "discard (and zeros where that leaves anything), zero, or secure (destroys all copies; few disks can)")
	flags.BoolVar(&w.withVolumes, "with-volumes", false, "also a disk with volumes of a pool")
	complete(command, "method", slices.Sorted(maps.Keys(erase.Methods))...)
	complete(command, "confirm")
	return command
}

func (w *wiping) run(command *cobra.Command, path string) error {
	if err := w.understand(); err != nil {
		return err
	}
	method, known := erase.Methods[w.method]
	if !known {
		return fmt.Errorf("%w: --method is %q; expected one of %q", volume.ErrInvalid, w.method, slices.Sorted(maps.Keys(erase.Methods)))
	}
	ctx, cancel := command.Context(), context.CancelFunc(func() {})
	if command.Flags().Changed("timeout") {
		ctx, cancel = w.limit(ctx)
	}
	defer cancel()
	disk, err := erase.Open(path, blockdev.NewSysfs("/sys"))
	if err != nil {
		return err
	}
	defer disk.Close()
	if len(disk.Volumes) > 0 && !w.withVolumes {
		return fmt.Errorf("%w: %s has the volumes %s of the pool %s; if nobody needs them any more, add --with-volumes",
			volume.ErrPrecondition, disk.Facts.NodePath, strings.Join(disk.Volumes, ", "), disk.Pool)
	}
	if err := w.ask(ctx, command, disk); err != nil {
		return err
	}
	shown := newProgress(command.ErrOrStderr(), "wiping "+disk.Facts.NodePath, disk.Facts.Size)
	err = disk.Erase(ctx, method, shown.tell)
	shown.end()
	if err != nil {
		return err
	}
	out := newOutput(command.OutOrStdout(), w.output)
	if out.isData() {
		return out.data(struct {
			Disk  string `json:"disk"`
			Size  uint64 `json:"size"`
			Wiped bool   `json:"wiped"`
		}{disk.Facts.NodePath, disk.Facts.Size, true})
	}
	return out.line("%s: wiped, all %s read zero. A pool that chooses it adopts it when it next needs space, or when the plugin starts.", disk.Facts.NodePath, size(disk.Facts.Size))
}

// ask shows what would be destroyed, and has it confirmed.
func (w *wiping) ask(ctx context.Context, command *cobra.Command, disk *erase.Disk) error {
	facts := disk.Facts
	about := newOutput(command.ErrOrStderr(), outputTable)
	lines := []string{fmt.Sprintf("%s, %s, model %q, serial %q, WWID %q", facts.NodePath, size(facts.Size), facts.Model, facts.Serial, facts.WWID)}
	if disk.Pool != "" {
		lines = append(lines, "  it belongs to the pool "+disk.Pool)
	}
	for _, name := range disk.Volumes {
		lines = append(lines, "  it has the volume "+name)
	}
	for _, content := range disk.Contents {
		lines = append(lines, "  it has "+content)
	}
	if len(disk.Contents) == 0 {
		lines = append(lines, "  nothing is known to be on it")
	}
	if w.confirm == "" {
		for _, line := range lines {
			if err := about.line("%s", line); err != nil {
				return err
			}
		}
	}
	return w.confirmed(ctx, command, w.confirm, facts.Name, "All of it will be destroyed, for ever.")
}

// confirmed returns an error unless the name is given, or typed.
func (t *tool) confirmed(ctx context.Context, command *cobra.Command, given, name, warning string) error {
	if given == "" {
		if !isTerminalInput(command.InOrStdin()) && t.output != outputTable && t.output != outputWide {
			return fmt.Errorf("%w: a program confirms it with --confirm %s; nothing was done", volume.ErrInvalid, name)
		}
		var err error
		question := fmt.Sprintf("%s Type %s to go on: ", warning, name)
		if given, err = prompt(ctx, command.ErrOrStderr(), bufio.NewReader(command.InOrStdin()), question); err != nil {
			return errors.Join(err, errors.New("nothing was done"))
		}
	}
	if given != name {
		return fmt.Errorf("%w: it was confirmed with %q, and is called %q; nothing was done", volume.ErrInvalid, given, name)
	}
	return nil
}

func (t *tool) release() *cobra.Command {
	var confirm string
	var wait bool
	command := &cobra.Command{
		Use:   "release VOLUME",
		Short: "Remove a volume that nobody uses from its pool, and wipe it",
		Long: `Remove a volume from its pool for ever: one whose PersistentVolume is gone, as after a reclaim
policy Retain, or of a cluster that is no more. It is what DeleteVolume does. While Kubernetes
has its PersistentVolume, delete that instead.

It refuses a volume that is staged, published or attached. It asks for the whole ID; a program
gives that with --confirm. The plugin wipes the space before it offers it again, which may take
hours (--wait, with progress; rawblockctl status). It needs the plugin.

With -o json or yaml it prints an object with the keys volume and released.`,
		Example: `  rawblockctl release nvme/pvc-8f0c@node-1
  rawblockctl release nvme/pvc-8f0c@node-1 --confirm nvme/pvc-8f0c@node-1 --wait`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: t.completeVolumes,
		RunE: func(command *cobra.Command, args []string) error {
			return t.look(command, func(l looking) error { return t.releaseOne(command, l, args[0], confirm, wait) })
		},
	}
	command.Flags().StringVar(&confirm, "confirm", "", "the whole ID of the volume: do not ask")
	command.Flags().BoolVar(&wait, "wait", false, "wait until the pool has nothing left to wipe; --timeout does not count then unless it is given")
	complete(command, "confirm")
	return command
}

func (t *tool) releaseOne(command *cobra.Command, l looking, id, confirm string, wait bool) error {
	if l.source == fromNode {
		return l.Release(l.ctx, id) // It says why not.
	}
	if err := t.confirmed(command.Context(), command, confirm, id, fmt.Sprintf("Volume %s and all that is on it will be destroyed, for ever.", id)); err != nil {
		return err
	}
	ctx, cancel := t.limit(command.Context())
	defer cancel()
	if err := l.Release(ctx, id); err != nil {
		return err
	}
	if wait {
		ctx := command.Context()
		if command.Flags().Changed("timeout") {
			var cancel context.CancelFunc
			ctx, cancel = t.limit(ctx)
			defer cancel()
		}
		if err := awaitWiped(ctx, command, l, id); err != nil {
			return err
		}
	}
	if l.out.isData() {
		return l.out.data(struct {
			Volume   string `json:"volume"`
			Released bool   `json:"released"`
		}{id, true})
	}
	return l.out.line("%s: released", id)
}

// awaitWiped waits until the pool of a volume has nothing left to wipe.
func awaitWiped(ctx context.Context, command *cobra.Command, l looking, id string) error {
	pool, _, _ := strings.Cut(id, "/")
	var shown *progress
	defer func() {
		if shown != nil {
			shown.end()
		}
	}()
	for {
		node, err := l.Status(ctx)
		if err != nil {
			return err
		}
		left := uint64(0)
		for _, one := range node.Pools {
			if one.Name == pool {
				left = one.Wiping
			}
		}
		if left == 0 {
			return nil
		}
		if shown == nil || left > shown.total {
			shown = newProgress(command.ErrOrStderr(), "wiping in pool "+pool, left)
		}
		shown.tell(shown.total - left)
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s are still to be wiped in pool %s; the plugin goes on: %w", size(left), pool, ctx.Err())
		case <-time.After(again):
		}
	}
}
