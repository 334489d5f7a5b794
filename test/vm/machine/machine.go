// Package machine is the machine under test as a test inside of it sees it: disks
// of every kind, which it has plugged in, pulled out, resized and broken while it
// runs.
//
// Only what runs in a guest of package vm has such a machine; the same requests
// can be made from outside, of vm.Guest.
package machine

import (
	"encoding/gob"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is where the agent in the guest passes requests on to the machine.
const Socket = "/run/machine.sock"

// Bus is how a disk is attached.
type Bus string

// The buses that a machine has.
const (
	SCSI   Bus = "scsi"
	NVMe   Bus = "nvme"
	Virtio Bus = "virtio"
)

// Disk describes a disk. Sizes are in bytes; what is left out is QEMU's default.
type Disk struct {
	// Bus is how it is attached; SCSI where it is left out.
	Bus Bus
	// Size is its size. It is not needed where the medium is there already.
	Size int64
	// Medium names what holds the data. Disks with the same name share it, at one
	// time (two ways to one disk) or one after the other. Without a name it has one
	// of its own.
	Medium string
	// Serial and WWN are what the disk states.
	Serial string
	WWN    uint64
	// LogicalBlockSize and PhysicalBlockSize are the sizes of its blocks.
	LogicalBlockSize, PhysicalBlockSize int
	// ReadOnly disks refuse all writes.
	ReadOnly bool
	// Options are further properties of QEMU's device.
	Options map[string]any
}

// Operation is what a machine can be asked to do.
type Operation string

// The operations. Each but OpAdd names the disk by the ID that it has returned.
const (
	OpAdd    Operation = "add"
	OpUnplug Operation = "unplug"
	OpPlug   Operation = "plug"
	OpResize Operation = "resize"
	OpBreak  Operation = "break"
	OpMend   Operation = "mend"
	OpHang   Operation = "hang"
	OpSet    Operation = "set"
)

// Request asks for an operation.
type Request struct {
	Operation Operation
	// ID names the disk.
	ID int
	// Disk describes the disk to add.
	Disk Disk
	// Size is the new size in bytes.
	Size int64
	// Offset is the only byte at which the disk is to break, 0 for all of it.
	Offset int64
	// Property and Value are what to set of QEMU's device.
	Property, Value string
}

// Reply tells how it went.
type Reply struct {
	// Error is empty where all went well.
	Error string
	// ID names the disk.
	ID int
	// Place is an expression for the path of the disk in /sys/devices.
	Place string
}

// Inside reports whether this process runs in a guest.
func Inside() bool {
	_, err := os.Stat(Socket)
	return err == nil
}

// Require skips the test, loudly, where it does not run in a guest; in CI it fails it: a
// test of package vm has it run in one.
func Require(t testing.TB) {
	t.Helper()
	if Inside() {
		return
	}
	const message = "needs a guest machine: make test-vm"
	if os.Getenv("CI") != "" {
		t.Fatal(message)
	}
	t.Skip("SKIPPED: " + message)
}

// OnlyInside ends the process, successfully, where it does not run in a guest: the
// tests of its package are run by those of package vm.
func OnlyInside() {
	if !Inside() {
		fmt.Println("These tests run in a guest machine: make test-vm.")
		os.Exit(0)
	}
}

// Main runs the tests of a package that are for a guest.
func Main(m *testing.M) {
	OnlyInside()
	os.Exit(m.Run())
}

// Plugged is a disk of this machine.
type Plugged struct {
	// Path is the kernel's node of the disk, such as /dev/sdb.
	Path string
	// Name is the kernel's name of it.
	Name  string
	id    int
	place *regexp.Regexp
}

// Add plugs a disk in and returns once its node is there. It is taken out with the
// test.
func Add(t testing.TB, disk Disk) *Plugged {
	t.Helper()
	reply := ask(t, Request{Operation: OpAdd, Disk: disk})
	plugged := &Plugged{id: reply.ID, place: regexp.MustCompile(reply.Place)}
	t.Cleanup(func() {
		if _, err := plugged.find(); err == nil {
			plugged.Mend(t)
			plugged.Unplug(t)
		}
	})
	plugged.waitForNode(t)
	return plugged
}

// Unplug pulls the disk out and returns once its node has gone.
func (p *Plugged) Unplug(t testing.TB) {
	t.Helper()
	ask(t, Request{Operation: OpUnplug, ID: p.id})
	poll(t, p.Path+" to go", func() error {
		if _, err := p.find(); err == nil {
			return errors.New("it is still in /sys/block")
		}
		if _, err := os.Stat(p.Path); err == nil {
			return errors.New("its node is still there")
		}
		return nil
	})
}

// Plug plugs the disk in again, at the same place, and returns once its node is
// there. It may have another name by then.
func (p *Plugged) Plug(t testing.TB) {
	t.Helper()
	ask(t, Request{Operation: OpPlug, ID: p.id})
	p.waitForNode(t)
}

// Resize gives the disk another size in bytes, while it is in use. QEMU's NVMe
// disks cannot.
func (p *Plugged) Resize(t testing.TB, size int64) {
	t.Helper()
	ask(t, Request{Operation: OpResize, ID: p.id, Size: size})
}

// Break has each read and write of the disk fail: with EIO, a read of an NVMe disk
// with ENODATA.
func (p *Plugged) Break(t testing.TB) {
	t.Helper()
	ask(t, Request{Operation: OpBreak, ID: p.id})
}

// BreakAt does the same only to what touches the byte at an offset that is not 0.
func (p *Plugged) BreakAt(t testing.TB, offset int64) {
	t.Helper()
	ask(t, Request{Operation: OpBreak, ID: p.id, Offset: offset})
}

// Hang has the disk answer no more.
func (p *Plugged) Hang(t testing.TB) {
	t.Helper()
	ask(t, Request{Operation: OpHang, ID: p.id})
}

// Mend ends what Break and Hang began.
func (p *Plugged) Mend(t testing.TB) {
	t.Helper()
	ask(t, Request{Operation: OpMend, ID: p.id})
}

// Set sets a property of QEMU's device while it runs. The value is JSON.
func (p *Plugged) Set(t testing.TB, property, value string) {
	t.Helper()
	ask(t, Request{Operation: OpSet, ID: p.id, Property: property, Value: value})
}

func (p *Plugged) waitForNode(t testing.TB) {
	t.Helper()
	poll(t, "the disk", func() (err error) {
		if p.Name, err = p.find(); err != nil {
			return err
		}
		p.Path = filepath.Join("/dev", p.Name)
		file, err := os.Open(p.Path)
		if err != nil {
			return err
		}
		return file.Close()
	})
}

// find returns the name of the disk at its place.
func (p *Plugged) find() (string, error) {
	links, err := filepath.Glob("/sys/block/*")
	if err != nil {
		return "", err
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && p.place.MatchString(target) {
			return filepath.Base(link), nil
		}
	}
	return "", fmt.Errorf("no disk at %s", p.place)
}

// limit bounds what a machine may take for anything, in real time.
const limit = 2 * time.Minute

func poll(t testing.TB, what string, done func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = done(); err == nil {
			return
		}
	}
	t.Fatalf("waited for %s: %v", what, err)
}

func ask(t testing.TB, request Request) Reply {
	t.Helper()
	reply, err := Ask(request)
	if err == nil && reply.Error != "" {
		err = errors.New(reply.Error)
	}
	if err != nil {
		t.Fatalf("%s of the machine's disk %d: %v", request.Operation, request.ID, err)
	}
	return reply
}

// Ask makes a request of the machine.
func Ask(request Request) (reply Reply, err error) {
	conn, err := net.DialTimeout("unix", Socket, limit)
	if errors.Is(err, unix.ENOENT) {
		return reply, errors.New("this is no guest machine")
	}
	if err != nil {
		return reply, err
	}
	defer conn.Close()
	if err := gob.NewEncoder(conn).Encode(request); err != nil {
		return reply, err
	}
	return reply, gob.NewDecoder(conn).Decode(&reply)
}
