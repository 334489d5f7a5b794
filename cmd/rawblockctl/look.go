package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
)

// looking is a command that looks at the node.
type looking struct {
	answering
	ctx context.Context //nolint:containedctx // It is that of one command.
	out output
}

// look runs a command that looks at the node.
func (t *tool) look(command *cobra.Command, show func(looking) error) error {
	ctx, cancel, client, err := t.begin(command.Context())
	if err != nil {
		return err
	}
	defer cancel()
	node, err := t.ask(ctx, client, command.ErrOrStderr())
	if err != nil {
		return err
	}
	defer node.close()
	return show(looking{node, ctx, newOutput(command.OutOrStdout(), t.output)})
}

// showing runs a command that shows a part of what there is on the node, and tells on
// the way what could not be found out.
func (t *tool) showing(command *cobra.Command, show func(output, inspect.Node) error) error {
	return t.look(command, func(l looking) error {
		node, err := l.Status(l.ctx)
		if err != nil {
			return err
		}
		for _, text := range node.Errors {
			sayText(command.ErrOrStderr(), "cannot be found out: "+text)
		}
		return show(l.out, node)
	})
}

func (t *tool) volumes() *cobra.Command {
	return &cobra.Command{
		Use:   "volumes",
		Short: "Show the volumes of this node and who uses them",
		Long: `Show the volumes of the pools of this node, and those of devices that an administrator named and
that are staged.

States:
  Published  pods have it
  Attached   running containers have it by hot attach, no pod
  Staged     prepared for a pod
  Unused     nobody on this node has it
  Gone       it is staged, and its device has gone`,
		Example: `  rawblockctl volumes
  rawblockctl volumes -o yaml`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return t.showing(command, func(o output, node inspect.Node) error {
				switch {
				case o.isData():
					return o.data(node.Volumes)
				case len(node.Volumes) == 0:
					return o.text(plain, "There are no volumes on this node.")
				default:
					return o.volumes(node.Volumes)
				}
			})
		},
	}
}

func (t *tool) disks() *cobra.Command {
	return &cobra.Command{
		Use:   "disks",
		Short: "Show the disks of this node, their pools, and why some are in none",
		Long: `Show the disks of this node. One that a pool has is Adopted. The state of another says why no
pool has it, and the reason what to do:
  unmatched   no selector chooses it
  excluded    the configuration excludes it
  unfit       a disk of this kind, or in this state, is never used
  unreadable  a fact of it cannot be read
  busy        something uses it
  failed      it cannot be read, or not be written
  occupied    there is data on it; rawblockctl wipe destroys that
  foreign     it belongs to another pool
  twin        another disk is a copy of it, or it of that one
  vacant      it has no partition table; shown only where no plugin answers`,
		Example: `  rawblockctl disks
  rawblockctl disks -o wide`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return t.showing(command, func(o output, node inspect.Node) error {
				switch {
				case o.isData():
					return o.data(node.Disks)
				case len(node.Disks) == 0:
					return o.text(plain, "There are no disks on this node.")
				default:
					return o.disks(node.Disks)
				}
			})
		},
	}
}

func (t *tool) capacity() *cobra.Command {
	return &cobra.Command{
		Use:   "capacity",
		Short: "Show what the pools of this node have to give",
		Long: `Show what can be made in each pool now, by volumes whose StorageClass has no parameters:
AVAILABLE in all, of which one volume can have LARGEST. What is still to be wiped (WIPING) is
offered once it is.`,
		Example: `  rawblockctl capacity`,
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return t.showing(command, func(o output, node inspect.Node) error {
				switch {
				case o.isData():
					return o.data(node.Pools)
				case len(node.Pools) == 0:
					return o.text(plain, "No pool is configured on this node.")
				default:
					return o.pools(node.Pools)
				}
			})
		},
	}
}

// completeVolumes offers the IDs of volumes to a shell.
func (t *tool) completeVolumes(command *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	var ids []string
	for _, one := range t.offered(command, given).Volumes {
		ids = append(ids, cobra.CompletionWithDesc(one.ID, string(one.State)))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// completeDisks offers the paths of disks that are in no pool to a shell.
func (t *tool) completeDisks(command *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	var paths []string
	for _, one := range t.offered(command, given).Disks {
		if one.State != inspect.Adopted {
			paths = append(paths, cobra.CompletionWithDesc(one.Path, oneLine(one.State+", "+size(one.Size))))
		}
	}
	return paths, cobra.ShellCompDirectiveNoFileComp
}

// offered returns what a shell offers to complete, as far as it is known at once.
func (t *tool) offered(command *cobra.Command, given []string) inspect.Node {
	if len(given) > 0 {
		return inspect.Node{}
	}
	ctx, cancel := context.WithTimeout(command.Context(), time.Second)
	defer cancel()
	node, err := t.ask(ctx, admin.NewClient(t.socket), io.Discard)
	if err != nil {
		return inspect.Node{}
	}
	defer node.close()
	found, err := node.Status(ctx)
	if err != nil {
		return inspect.Node{}
	}
	return found
}
