package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// attaching is the command line of attach.
type attaching struct {
	*tool
	request     hotplug.Request
	pod, podUID string
	dryRun      bool
}

func (t *tool) attach() *cobra.Command {
	a := &attaching{tool: t}
	command := &cobra.Command{
		Use:   "attach {--device PATH | --volume ID} {--pod NAMESPACE/POD[/CONTAINER] | --container ID | --pid N} --path PATH",
		Short: "Give a device to a running container",
		Long: `Give a raw block device of this node to a container that is running: its node is made in
the container, and the container's device cgroup is opened for it.

The device is a disk of the node (--device), which nobody else may use meanwhile, or a
volume of the driver that is staged on the node (--volume).

The container is one of a pod (--pod), is named by its ID as crictl, docker and podman print
it (--container), or is that of a process of the host (--pid). The container runtime is asked
only for --pod.

The directory of --path must be there in the container, and nothing at the path itself. No link
is followed.

It may be repeated: what is attached as asked for already is left as it is.`,
		Example: `  rawblockctl attach --device /dev/disk/by-id/nvme-eui.0000000000000001 --pod default/db-0/postgres --path /dev/xvdb
  rawblockctl attach --volume files/pvc-8f0c@node-1 --container 3f2a9c81d0be --path /dev/xvdb --read-only
  rawblockctl attach --device /dev/sdb --pid 4711 --path /dev/xvdb --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return a.run(command) },
	}
	a.addFlags(command)
	return command
}

func (a *attaching) addFlags(command *cobra.Command) {
	request, flags := &a.request, command.Flags()
	flags.StringVar(&request.Device, "device", "", "path of a block device on the host; better one of /dev/disk/by-id than /dev/sdb")
	flags.StringVar(&request.Volume, "volume", "", "ID of a volume that is staged on this node (volumeHandle of its PersistentVolume)")
	flags.StringVar(&a.pod, "pod", "", "NAMESPACE/POD, or NAMESPACE/POD/CONTAINER where several containers run in it")
	flags.StringVar(&a.podUID, "pod-uid", "", "UID that the pod must have; names are used again")
	flags.StringVar(&request.Target.Container, "container", "", "ID of a container, or at least the first 12 digits")
	flags.IntVar(&request.Target.PID, "pid", 0, "any process of the container, as the host counts")
	flags.StringVar(&request.Path, "path", "", "where the device appears in the container, such as /dev/xvdb")
	flags.BoolVar(&request.ReadOnly, "read-only", false, "let the container read only")
	flags.BoolVar(&request.Shared, "shared", false, "let others have the device too; the programs must know how to share it")
	flags.BoolVar(&request.Restore, "restore", false, "attach it again when the container is restarted; not with --pid")
	flags.BoolVar(&a.dryRun, "dry-run", false, "check everything, say what would be done, and do nothing")
	command.MarkFlagsOneRequired("device", "volume")
	command.MarkFlagsMutuallyExclusive("device", "volume")
	command.MarkFlagsOneRequired("pod", "container", "pid")
	command.MarkFlagsMutuallyExclusive("pod", "container", "pid")
	command.MarkFlagsMutuallyExclusive("pid", "restore")
	command.MarkFlagsOneRequired("path")
	for _, flag := range []string{"volume", "pod", "pod-uid", "container", "pid", "path"} {
		complete(command, flag)
	}
}

func (a *attaching) run(command *cobra.Command) error {
	ctx, cancel, client, err := a.begin(command.Context())
	if err != nil {
		return err
	}
	defer cancel()
	if a.request.Target.Pod, err = parsePod(a.pod, a.podUID); err != nil {
		return err
	}
	if err := a.request.Check(); err != nil {
		return err
	}
	out := newOutput(command.OutOrStdout(), a.output)
	if a.dryRun {
		plan, err := client.Plan(ctx, a.request)
		if err != nil {
			return err
		}
		return out.plan(plan)
	}
	attachment, err := client.Attach(ctx, a.request)
	if err != nil {
		return err
	}
	return out.attachment(attachment)
}

// parsePod reads --pod, which has two or three parts.
func parsePod(text, uid string) (*hotplug.Pod, error) {
	if text == "" {
		if uid != "" {
			return nil, fmt.Errorf("%w: --pod-uid is %q, but --pod is empty", volume.ErrInvalid, uid)
		}
		return nil, nil //nolint:nilnil // No pod is an answer.
	}
	parts := strings.Split(text, "/")
	if len(parts) < 2 || len(parts) > 3 || strings.Contains("/"+text+"/", "//") {
		return nil, fmt.Errorf("%w: --pod is %q; expected NAMESPACE/POD or NAMESPACE/POD/CONTAINER", volume.ErrInvalid, text)
	}
	pod := &hotplug.Pod{Namespace: parts[0], Name: parts[1], UID: uid}
	if len(parts) == 3 {
		pod.Container = parts[2]
	}
	return pod, nil
}
