package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
)

func (t *tool) inspect() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect VOLUME",
		Short: "Show the whole way of a volume, from its medium to the container that has it",
		Long: `Show the way of a volume as a tree: what its bytes lie on, its device, the record that it is
staged, where it is published for each pod, kubelet's own mount of that with its lock and its
link, and the containers and processes that have it. What is wrong stands behind an arrow.

VOLUME is the volumeHandle of the PersistentVolume, or as much of it as is its alone.

With -o json or yaml it prints an object with the keys source, volume (as in rawblockctl volumes),
links and errors. A link has kind, name, detail, problem and next, the links that are made of it.
Its kind is one of medium, file, partition, place, device, stage, target, view, map, lock, link,
container, process and attachment.`,
		Example: `  rawblockctl inspect files/pvc-8f0c@node-1
  rawblockctl inspect pvc-8f0c`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: t.completeVolumes,
		RunE: func(command *cobra.Command, args []string) error {
			return t.look(command, func(l looking) error {
				chain, err := l.Chain(l.ctx, args[0])
				if err != nil {
					return err
				}
				if l.out.isData() {
					return l.out.data(struct {
						Source string `json:"source"`
						inspect.Chain
					}{l.source, chain})
				}
				return l.out.chain(chain)
			})
		},
	}
}

// linkWords are what the kinds of links are called.
var linkWords = map[inspect.LinkKind]string{
	inspect.LinkMedium: "medium", inspect.LinkFile: "file", inspect.LinkPartition: "partition of", inspect.LinkPlace: "in",
	inspect.LinkDevice: "device", inspect.LinkStage: "staged, by the record", inspect.LinkTarget: "published at",
	inspect.LinkView: "read-only view", inspect.LinkMap: "kubelet's mount", inspect.LinkLock: "kubelet's lock", inspect.LinkPod: "kubelet's link",
	inspect.LinkContainer: "container", inspect.LinkProcess: "process", inspect.LinkAttachment: "attachment",
}

func (o output) chain(chain inspect.Chain) error {
	one := chain.Volume
	if err := o.text(bold, "volume %s  %s  %s", one.ID, size(one.Size), one.State); err != nil {
		return err
	}
	if err := o.links(chain.Links, ""); err != nil {
		return err
	}
	for _, text := range chain.Errors {
		if err := o.text(red, "Cannot be found out: %s", text); err != nil {
			return err
		}
	}
	return nil
}

// links prints links as the branches of a tree.
func (o output) links(links []inspect.Link, indent string) error {
	for i, link := range links {
		branch, below := "├─ ", "│  "
		if i == len(links)-1 {
			branch, below = "└─ ", "   "
		}
		line := linkWords[link.Kind] + " " + oneLine(link.Name)
		if link.Detail != "" {
			line += "  (" + oneLine(link.Detail) + ")"
		}
		if _, err := fmt.Fprintln(o.w, indent+branch+strings.TrimSpace(line)); err != nil {
			return err
		}
		if link.Problem != "" {
			if _, err := fmt.Fprintln(o.w, indent+below+o.paint("-> "+oneLine(link.Problem), red)); err != nil {
				return err
			}
		}
		if err := o.links(link.Next, indent+below); err != nil {
			return err
		}
	}
	return nil
}
