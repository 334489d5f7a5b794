// Command demo shows what the plugin does, in a directory that it makes for itself:
// it calls the real plugin as external-provisioner, kubelet and an administrator do,
// and starts real containers as a container runtime does. Then it takes everything
// down and counts what is left. There are two stories: the life of a volume, and hot
// attach.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// demo is everything that the steps make.
type demo struct {
	screen
	// binary is the plugin's, and tool that of rawblockctl.
	binary, tool string
	// dir holds all files. Its name is like no other, and is part of the name
	// of whatever the demo makes, and so of whatever it might leave behind.
	dir    string
	plugin *plugin
	// claim is the volume of pod-1, and restored that of pod-2.
	claim, restored volume
	// snapshot is the ID of a snapshot of claim.
	snapshot string
	// writer and reader are the two pods.
	writer, reader pod
	// disk is what is attached to containers that run already, and running the
	// container that it is attached to.
	disk    disk
	running pod
	// undo takes down what was made, the last thing first.
	undo []action
}

type action func(context.Context) error

type step struct {
	about string
	do    action
}

// volumeStory is the demo: what each step is about, and the step.
func (d *demo) volumeStory() []step {
	return []step{
		{"Make a directory for volumes, on XFS: a snapshot shares its data with the volume there, and can be made while a pod writes.", d.makeFilesystem},
		{"Start the plugin with one pool, in that directory. It listens where kubelet would call it.", d.startPlugin},
		{"Ask the plugin which node it is on. The scheduler places pods by the answer.", d.askForNode},
		{"Somebody claims 64 MiB with volumeMode: Block. External-provisioner asks the plugin for a volume.", d.createClaim},
		{"The volume is a file, and all of its space is taken already: no write of a pod can meet a full filesystem.", d.lookAtFile},
		{"Stage the volume: the plugin makes the file a block device, which passes the host's page cache by (dio).", d.stageClaim},
		{"Publish it for pod-1: the device's own node is mounted on the target path.", d.publishForWriter},
		{"Start pod-1 as a container runtime does: it takes type and number of what is at the target path.", d.startWriter},
		{"Inside pod-1, /dev/xvda is the volume: no filesystem, only bytes.", d.useVolume},
		{"On the host, the bytes are in the file.", d.lookAtBytes},
		{"Make a snapshot while pod-1 has the volume open.", d.takeSnapshot},
		{"Pod-1 goes on, and writes something else.", d.writeOver},
		{"Restore the snapshot: a claim of 96 MiB that begins with what the snapshot holds.", d.restore},
		{"Stage and publish it for pod-2, read-only: what is mounted is a view of the device that refuses every write.", d.publishForReader},
		{"Start pod-2 in the same way. The runtime gives it every right to its device, as to a privileged pod.", d.startReader},
		{"Inside pod-2: it reads what pod-1 wrote before the snapshot, and cannot write.", d.tryToWrite},
		{"Expand the volume of pod-1 to 128 MiB while pod-1 runs. It writes its new last block.", d.expand},
	}
}

func main() {
	d := &demo{}
	flag.StringVar(&d.binary, "plugin", "bin/rawblock-csi", "the plugin's binary; make build makes it")
	flag.StringVar(&d.tool, "rawblockctl", "bin/rawblockctl", "the administrator's tool; make build makes it")
	hotplug := flag.Bool("hotplug", false, "tell the story of hot attach instead")
	flag.Parse()
	story := d.volumeStory()
	if *hotplug {
		story = d.hotplugStory()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := d.run(ctx, story); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func (d *demo) run(ctx context.Context, story []step) error {
	if err := d.checkMachine(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "rawblock-demo-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	d.screen, d.dir = newScreen(dir), dir
	d.later(d.removeDir)
	err = d.tell(ctx, story)
	whileItRan := takeInventory(filepath.Base(dir))
	return errors.Join(err, d.takeDown(ctx), d.compare(whileItRan))
}

// checkMachine says what is missing before anything is made.
func (d *demo) checkMachine() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes loop devices, mounts and containers")
	}
	for _, binary := range []string{d.binary, d.tool} {
		if _, err := os.Stat(binary); err != nil {
			return fmt.Errorf("%w; run make build first", err)
		}
	}
	for program, pkg := range map[string]string{"runc": "runc", "busybox": "busybox-static", "mkfs.xfs": "xfsprogs", "mount": "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w; install the package %s first", err, pkg)
		}
	}
	return nil
}

// tell goes through a story until its end, an error, or Ctrl-C.
func (d *demo) tell(ctx context.Context, story []step) error {
	fmt.Println("All files of this demo are in DEMO=" + d.dir)
	fmt.Println("A line with > shows what is done, as a command or as a call of the plugin.")
	for _, step := range story {
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		d.next(step.about)
		if err := toItsEnd(ctx, step.do); err != nil {
			return fmt.Errorf("step %d: %w", d.number, err)
		}
	}
	return nil
}

// takeDown undoes every step that was made, also where one cannot be undone.
func (d *demo) takeDown(ctx context.Context) error {
	d.next("Take everything down, the last thing first.")
	var errs []error
	for _, undo := range slices.Backward(d.undo) {
		err := toItsEnd(ctx, undo)
		if err != nil {
			// Ctrl-C may have hit a command before it had a process group of its own.
			err = toItsEnd(ctx, undo)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// later has takeDown call undo.
func (d *demo) later(undo action) { d.undo = append(d.undo, undo) }

// toItsEnd does one thing whole: Ctrl-C counts between two steps, so that it is
// always known what there is to undo.
func toItsEnd(ctx context.Context, do action) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	return do(ctx)
}

func (d *demo) removeDir(context.Context) error {
	d.did("rm -r $DEMO")
	if err := os.RemoveAll(d.dir); err != nil {
		return fmt.Errorf("remove the directory: %w", err)
	}
	return nil
}
