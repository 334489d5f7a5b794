package hotplug

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
	"github.com/rawblock-csi/rawblock-csi/test/oci"
	"github.com/rawblock-csi/rawblock-csi/test/rig"
	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
)

// holderInGuest is where the holder is in a guest machine, which has no compiler.
const holderInGuest = "/usr/local/bin/holder"

// addHolder puts the holder into the container.
func (c *container) addHolder(t *testing.T) {
	t.Helper()
	program := filepath.Join(c.Rootfs, "bin", "holder")
	if machine.Inside() {
		data, err := os.ReadFile(holderInGuest)
		rig.Must(t, err)
		rig.Must(t, os.WriteFile(program, data, 0o755))
		return
	}
	build := exec.CommandContext(rig.Context(t), "go", "build", "-trimpath", "-o", program, "./holder")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the holder: %v\n%s", err, output)
	}
}

// hold has a program in the container hold a device, until release is called.
func (c *container) hold(t *testing.T, how, path string) (release func()) {
	t.Helper()
	release, _ = c.holdAndWrite(t, how, path)
	return release
}

// holdAndWrite does the same; write has the program write a line to the device, and
// returns how that went.
func (c *container) holdAndWrite(t *testing.T, how, path string) (release func(), write func(line string) string) {
	t.Helper()
	c.addHolder(t)
	command := c.Command(rig.Context(t), "/bin/holder", how, path)
	command.Stderr = os.Stderr
	input, err := command.StdinPipe()
	rig.Must(t, err)
	output, err := command.StdoutPipe()
	rig.Must(t, err)
	rig.Must(t, command.Start())
	t.Cleanup(func() { input.Close(); command.Wait() }) // It may have ended already.
	release = func() {
		input.Close()
		io.Copy(io.Discard, output) // Until it has ended.
		if err := command.Wait(); err != nil {
			t.Errorf("the holder: %v", err)
		}
	}
	lines := bufio.NewReader(output)
	if line, err := lines.ReadString('\n'); err != nil || line != "holding\n" {
		t.Fatalf("the holder says %q, %v", line, err)
	}
	write = func(text string) string {
		t.Helper()
		_, err := io.WriteString(input, text+"\n")
		rig.Must(t, err)
		line, err := lines.ReadString('\n')
		rig.Must(t, err)
		return strings.TrimSpace(line)
	}
	return release, write
}

// What a program holds goes on working, and keeps the device from being released.
func TestHeld(t *testing.T) {
	for _, how := range []string{"descriptor", "mapping"} {
		for _, v2 := range []bool{false, true} {
			t.Run(how+"/"+version(v2), func(t *testing.T) {
				node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, oci.Config{CgroupV2: v2})
				ctx := rig.Context(t)
				attached, err := node.Attach(ctx, container.request(disk, "/dev/xvdb"))
				rig.Must(t, err)
				release := container.hold(t, how, "/dev/xvdb")

				for range 2 {
					held, err := node.Detach(ctx, attached.ID)
					wantErrorOf(t, err, volume.ErrInUse, "(holder)")
					if held.State != hotplug.Held || len(held.Holders) != 1 || held.Holders[0].Command != "holder" {
						t.Errorf("the attachment is %+v", held)
					}
				}
				// Nobody gets it anew: neither the container, nor another volume or container.
				container.wantNothing(t, "/dev/xvdb")
				_, err = container.read(t, container.ownNode(t, disk), 1)
				wantRefused(t, err)
				wantErrorOf(t, node.stage(t, "other", disk), volume.ErrInUse, "is staged as volume hot-attach/"+attached.ID)
				_, err = node.Attach(ctx, startContainer(t, oci.Config{}).request(disk, "/dev/xvdb"))
				wantErrorOf(t, err, volume.ErrInUse, "(attachment "+attached.ID+", Held)")
				// Nor is it forgotten when the plugin is started again.
				node = node.restart(t)
				rig.Must(t, node.Reconcile(ctx))
				if list, err := node.List(ctx); err != nil || len(list) != 1 || list[0].State != hotplug.Held {
					t.Errorf("after a restart: %+v, %v", list, err)
				}

				release()
				rig.Must(t, node.Reconcile(ctx))
				wantNoAttachment(t, node)
				if again, err := node.Detach(ctx, attached.ID); err != nil || again.State != hotplug.Detached {
					t.Errorf("who was told that it is held asks again: %+v, %v", again, err)
				}
				rig.Must(t, node.stage(t, "other", disk))
			})
		}
	}
}

// A holder elsewhere counts where the device is the attachment's alone.
func TestHeldOnTheHost(t *testing.T) {
	node, disk, container := newNode(t), rig.NewDisk(t, rig.MiB), startContainer(t, oci.Config{})
	ctx := rig.Context(t)
	attached, err := node.Attach(ctx, container.request(disk, "/dev/xvdb"))
	rig.Must(t, err)
	holder := exec.CommandContext(ctx, "sleep", "infinity")
	holder.Stdin, err = os.Open(disk.Path)
	rig.Must(t, err)
	rig.Must(t, holder.Start())
	rig.Must(t, holder.Stdin.(*os.File).Close())
	t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	_, err = node.Detach(ctx, attached.ID)
	wantErrorOf(t, err, volume.ErrInUse, "(sleep)")
	rig.Must(t, holder.Process.Kill())
	holder.Wait() // It was killed.
	_, err = node.Detach(ctx, attached.ID)
	rig.Must(t, err)
}

// A mount holds a device without any process.
func TestHeldByTheKernel(t *testing.T) {
	node, disk, container := newNode(t), rig.NewDisk(t, 8*rig.MiB), startContainer(t, oci.Config{})
	ctx := rig.Context(t)
	attached, err := node.Attach(ctx, container.request(disk, "/dev/xvdb"))
	rig.Must(t, err)
	mounted := disk.Mount(t, "ext4")
	held, err := node.Detach(ctx, attached.ID)
	wantErrorOf(t, err, volume.ErrInUse, "mounted")
	if held.State != hotplug.Held {
		t.Errorf("the attachment is %+v", held)
	}
	rig.UnmountAll(t, mounted)
	_, err = node.Detach(ctx, attached.ID)
	rig.Must(t, err)
}

// Two containers share a device: who holds it in the one is nobody's business in the
// other.
func TestShared(t *testing.T) {
	node, disk := newNode(t), rig.NewDisk(t, rig.MiB)
	one, two := startContainer(t, oci.Config{}), startContainer(t, oci.Config{CgroupV2: true})
	ctx := rig.Context(t)
	request := one.request(disk, "/dev/xvdb")
	request.Shared = true
	first, err := node.Attach(ctx, request)
	rig.Must(t, err)
	_, err = node.Attach(ctx, two.request(disk, "/dev/xvdb"))
	wantErrorOf(t, err, volume.ErrInUse, "have both share it")
	request = two.request(disk, "/dev/xvdb")
	request.Shared = true
	second, err := node.Attach(ctx, request)
	rig.Must(t, err)
	rig.Must(t, one.write(t, "/dev/xvdb", "shared"))
	if got, err := two.read(t, "/dev/xvdb", 6); err != nil || got != "shared" {
		t.Errorf("the other reads %q, %v", got, err)
	}
	one.hold(t, "descriptor", "/dev/xvdb")
	_, err = node.Detach(ctx, second.ID)
	rig.Must(t, err)
	_, err = node.Detach(ctx, first.ID)
	if !errors.Is(err, volume.ErrInUse) || !strings.Contains(err.Error(), "holder") {
		t.Errorf("detached from under its holder: %v", err)
	}
}
