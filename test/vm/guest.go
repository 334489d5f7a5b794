// Package vm boots machines under test: QEMU guests with disks of every kind,
// which are plugged in, pulled out and broken while tests run inside.
//
// A guest is a Debian system that is put together from Debian's packages and kept
// for the next run. QEMU emulates it (KVM is not needed), so what runs inside is
// slow: programs are built outside, and one boot serves many tests. Tests below
// this directory run inside (package machine says what they can ask for) and are
// started by the tests of this package, whose names begin with TestVM. Which of those
// inside run can be narrowed with RAWBLOCK_VM_RUN, as with -run.
package vm

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rawblock-csi/rawblock-csi/test/vm/machine"
	"github.com/rawblock-csi/rawblock-csi/test/vm/wire"
)

// Config says what machine is wanted.
type Config struct {
	// Udev runs udev, which makes the links in /dev/disk. Without it there are the
	// kernel's own nodes only.
	Udev bool
	// Systemd makes systemd the first process; udev runs then.
	Systemd bool
	// Disks are there when the machine starts, and appear in this order.
	Disks []machine.Disk
	// Media is a directory that holds the media of the disks; by default one that goes
	// with the test. With it they outlast the machine.
	Media string
	// Arguments are further ones of QEMU, for what cannot be plugged in.
	Arguments []string
}

// Guest is a machine that runs. It goes with its test.
type Guest struct {
	dir     string
	console string
	qmp     *qmp
	disks   *disks
	conn    net.Conn
	decoder *gob.Decoder
	encoder *gob.Encoder
}

// bootLimit bounds the start of a machine, which takes seconds.
const bootLimit = 5 * time.Minute

// Start boots a machine, and returns once it does what it is told.
func Start(t testing.TB, config Config) *Guest {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("root is needed")
		}
		t.Skip("SKIPPED: root is needed to make the guest's disk")
	}
	leave, err := takePlace()
	must(t, err)
	t.Cleanup(leave)
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	began := time.Now()
	guest := &Guest{dir: shortDir(t)}
	guest.console = filepath.Join(guest.dir, "console")
	if config.Media == "" {
		config.Media = t.TempDir()
	}
	must(t, guest.boot(ctx, t, config))
	if err := guest.waitReady(ctx); err != nil {
		t.Fatalf("the guest does not start: %v\n%s", err, guest.Console())
	}
	t.Logf("The guest has started in %s.", time.Since(began).Round(time.Millisecond))
	return guest
}

// shortDir is a directory whose path is short enough for sockets (unix(7)).
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rbvm")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// boot starts QEMU and gives it its disks, before the guest looks for them.
func (g *Guest) boot(ctx context.Context, t testing.TB, config Config) error {
	t.Helper()
	base, err := openImage(ctx)
	if err != nil {
		return fmt.Errorf("make the guest's image: %w", err)
	}
	initrd, err := makeInitrd(ctx, base, g.dir)
	if err != nil {
		return fmt.Errorf("make the initial RAM disk: %w", err)
	}
	log, err := os.Create(g.console)
	if err != nil {
		return err
	}
	log.Close()
	emulator := exec.CommandContext(context.WithoutCancel(ctx), "qemu-system-x86_64", qemuArguments(base, initrd, g.dir, config)...)
	var complaints bytes.Buffer
	emulator.Stderr = &complaints
	// Also where this process is killed, and cleans nothing up.
	emulator.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := emulator.Start(); err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	t.Cleanup(func() {
		emulator.Process.Kill() //nolint:errcheck // It may have ended.
		emulator.Wait()         //nolint:errcheck // It says that it was killed.
		if t.Failed() {
			t.Logf("QEMU said: %s\nThe console ends with:\n%s", &complaints, g.Console())
		}
	})
	if g.qmp, err = openQMP(ctx, filepath.Join(g.dir, "qmp")); err != nil {
		return errors.Join(err, errors.New(complaints.String()))
	}
	g.disks = &disks{qmp: g.qmp, dir: config.Media}
	for _, disk := range config.Disks {
		if _, err := g.disks.do(ctx, machine.Request{Operation: machine.OpAdd, Disk: disk}); err != nil {
			return err
		}
	}
	if err := g.connect(ctx); err != nil {
		return err
	}
	return g.qmp.run(ctx, "cont", nil)
}

// qemuArguments are those of a machine that waits, with the root disk, a SCSI
// controller and ports for other disks, and the lines to the agent.
func qemuArguments(base image, initrd, dir string, config Config) []string {
	// QEMU's NVMe disk stops the whole machine until a request ends that the driver
	// gives up, which it would do after a minute.
	words := "console=ttyS0 quiet panic=-1 systemd.show_status=0 nvme_core.io_timeout=3600"
	// What only slows an emulated machine down, by a tenth. And by a half, as most of
	// what runs are short programs: QEMU translates one anew at each new address.
	words += " mitigations=off init_on_alloc=0 norandmaps"
	if config.Systemd {
		words += " guest.init=systemd"
	}
	if config.Udev {
		words += " guest.udev"
	}
	args := []string{
		"-S", "-M", "q35", "-cpu", "qemu64", "-m", "1024", "-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", base.kernel, "-initrd", initrd, "-append", words,
		"-serial", "file:" + filepath.Join(dir, "console"),
		"-qmp", "unix:" + filepath.Join(dir, "qmp") + ",server=on,wait=off",
		// The root disk is shared: what is written to it goes with the machine.
		"-drive", "if=none,id=root,format=raw,snapshot=on,file=" + base.root,
		"-device", "virtio-blk-pci,drive=root,addr=2",
		"-device", "virtio-scsi-pci,id=scsi,addr=3",
		"-device", "virtio-serial-pci,addr=4",
	}
	for _, name := range []string{wire.CommandPort, wire.MachinePort} {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=%s,path=%s,server=on,wait=off", name, filepath.Join(dir, name)),
			"-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s", name, name))
	}
	for port := range ports {
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=port%d,chassis=%d,addr=%#x", port, port+1, firstSlot+port))
	}
	return append(args, config.Arguments...)
}

// connect opens the lines to the agent and answers what the guest asks for.
func (g *Guest) connect(ctx context.Context) (err error) {
	if g.conn, err = dial(ctx, filepath.Join(g.dir, wire.CommandPort)); err != nil {
		return err
	}
	g.decoder, g.encoder = gob.NewDecoder(g.conn), gob.NewEncoder(g.conn)
	requests, err := dial(ctx, filepath.Join(g.dir, wire.MachinePort))
	if err != nil {
		return err
	}
	go g.answer(context.WithoutCancel(ctx), requests)
	return nil
}

// answer carries out what is asked for within, until the machine ends.
func (g *Guest) answer(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	decoder, encoder := gob.NewDecoder(conn), gob.NewEncoder(conn)
	for {
		var request machine.Request
		if decoder.Decode(&request) != nil {
			return
		}
		reply, err := g.Do(ctx, request)
		if err != nil {
			reply.Error = err.Error()
		}
		if encoder.Encode(reply) != nil {
			return
		}
	}
}

// operationLimit bounds an operation on a disk. The guest must give up a disk that
// is pulled.
const operationLimit = 2 * time.Minute

// Do does something with a disk of the machine, as package machine does from within.
func (g *Guest) Do(ctx context.Context, request machine.Request) (machine.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, operationLimit)
	defer cancel()
	return g.disks.do(ctx, request)
}

// waitReady waits for the agent's first word.
func (g *Guest) waitReady(ctx context.Context) error { return g.read(ctx, io.Discard) }

// read reads the answers to a command.
func (g *Guest) read(ctx context.Context, output io.Writer) error {
	// Without a word from the guest, only this ends the reading.
	stop := context.AfterFunc(ctx, func() { g.conn.Close() })
	defer stop()
	for {
		var answer wire.Answer
		if err := g.decoder.Decode(&answer); err != nil {
			return errors.Join(fmt.Errorf("read from the guest: %w", err), ctx.Err())
		}
		if _, err := output.Write(answer.Output); err != nil {
			return err
		}
		switch {
		case answer.Done && answer.Status != "":
			return errors.New(answer.Status)
		case answer.Done:
			return nil
		}
	}
}

// Execute runs a program in the guest as root, writes what it prints to output,
// and returns an error where it fails. Where ctx ends before the program does, the
// guest can be used no more. One program runs at a time.
func (g *Guest) Execute(ctx context.Context, output io.Writer, command wire.Command) error {
	if err := g.encoder.Encode(command); err != nil {
		return fmt.Errorf("write to the guest: %w", err)
	}
	return g.read(ctx, output)
}

// Run runs a program in the guest: Execute without more.
func (g *Guest) Run(ctx context.Context, output io.Writer, args ...string) error {
	return g.Execute(ctx, output, wire.Command{Args: args})
}

// chunk is how much of a file is sent at once, in bytes.
const chunk = 1 << 20

// Put copies a file into the guest, where it can be executed.
func (g *Guest) Put(ctx context.Context, path, to string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	buffer := make([]byte, chunk)
	for begins := true; ; begins = false {
		n, err := io.ReadFull(file, buffer)
		if n > 0 || begins {
			command := wire.Command{File: to, Data: buffer[:n], Begins: begins}
			if err := g.Execute(ctx, io.Discard, command); err != nil {
				return fmt.Errorf("copy %s into the guest: %w", path, err)
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// consoleEnd is how much of the console is shown, in bytes.
const consoleEnd = 8 << 10

// Console returns the end of what the kernel and the first process have printed.
func (g *Guest) Console() string {
	data, err := os.ReadFile(g.console)
	if err != nil {
		return err.Error()
	}
	return strings.ToValidUTF8(string(data[max(0, len(data)-consoleEnd):]), "?")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
