package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// plugin is a fake behind the real admin socket: it remembers what it was asked, and
// answers as the test wants, also with errors that cannot be provoked at will.
// node_test.go has the real plugin, with a real container.
type plugin struct {
	asked hotplug.Request
	list  []hotplug.Attachment
	// revoked are the attachments that were detached by force.
	revoked []string
	// answers are the errors of the next calls.
	answers []error
}

func (p *plugin) next() error {
	if len(p.answers) == 0 {
		return nil
	}
	err := p.answers[0]
	p.answers = p.answers[1:]
	return err
}

func (p *plugin) Attach(_ context.Context, request hotplug.Request) (hotplug.Attachment, error) {
	p.asked = request
	return example, p.next()
}

func (p *plugin) Plan(_ context.Context, request hotplug.Request) (hotplug.Plan, error) {
	p.asked = request
	return hotplug.Plan{Attachment: example, Steps: []string{"do this", "do that"}}, p.next()
}

func (p *plugin) Detach(_ context.Context, id string) (hotplug.Attachment, error) {
	attachment := example
	attachment.ID = id
	err := p.next()
	if err != nil && !errors.Is(err, volume.ErrInUse) {
		return hotplug.Attachment{}, err
	}
	if err != nil {
		attachment.State = hotplug.Held
		attachment.Holders = []hotplug.Holder{{PID: 4711, Command: "postgres"}, {PID: 4712, Command: "evil\x1b[2J"}}
	}
	return attachment, err
}

func (p *plugin) Revoke(_ context.Context, id string) (hotplug.Attachment, error) {
	p.revoked = append(p.revoked, id)
	attachment := example
	attachment.ID = id
	return attachment, p.next()
}

func (p *plugin) List(context.Context) ([]hotplug.Attachment, error) { return p.list, p.next() }

var example = hotplug.Attachment{
	ID: "k3jq7dza", State: hotplug.Attached, Number: "8:16", Size: 1 << 30, PID: 4700, ContainerID: strings.Repeat("0a", 32),
	Request: hotplug.Request{
		Device: "/dev/sdb", Path: "/dev/xvdb",
		Target: hotplug.Target{Pod: &hotplug.Pod{Namespace: "default", Name: "db-0", UID: "1-2", Container: "postgres"}},
	},
}

// serve serves the fake until the test ends, and returns the socket.
func (p *plugin) serve(t *testing.T) string {
	t.Helper()
	// The paths of sockets must be short (unix(7)).
	dir, err := os.MkdirTemp("", "rb")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "admin.sock")
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- admin.Serve(ctx, socket, p, nil) }()
	t.Cleanup(func() { stop(); must(t, <-ended) })
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return socket
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ctl runs a command line.
func ctl(t *testing.T, socket string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), append([]string{"--socket", socket}, args...), &out, &err)
	return code, out.String(), err.String()
}

func TestAttach(t *testing.T) {
	fake := &plugin{}
	socket := fake.serve(t)
	for line, want := range map[string]hotplug.Request{
		"--device /dev/sdb --pid 7 --path /dev/xvdb":                       {Device: "/dev/sdb", Target: hotplug.Target{PID: 7}, Path: "/dev/xvdb"},
		"--volume a/b@c --container 0a0a0a0a0a0a --path /dev/x --restore":  {Volume: "a/b@c", Target: hotplug.Target{Container: "0a0a0a0a0a0a"}, Path: "/dev/x", Restore: true},
		"--device /dev/sdb --pod ns/db --path /dev/x --read-only --shared": {Device: "/dev/sdb", Target: hotplug.Target{Pod: &hotplug.Pod{Namespace: "ns", Name: "db"}}, Path: "/dev/x", ReadOnly: true, Shared: true},
		"--device /dev/sdb --pod ns/db/app --pod-uid 1-2 --path /dev/x":    {Device: "/dev/sdb", Target: hotplug.Target{Pod: &hotplug.Pod{Namespace: "ns", Name: "db", UID: "1-2", Container: "app"}}, Path: "/dev/x"},
	} {
		code, stdout, stderr := ctl(t, socket, append([]string{"attach"}, strings.Fields(line)...)...)
		if diff := cmp.Diff(want, fake.asked); diff != "" || code != exitDone || stderr != "" {
			t.Errorf("%s: ended with %d, %s (-want +asked):\n%s", line, code, stderr, diff)
		}
		if want := "k3jq7dza: /dev/sdb (1Gi, rw) is attached to pod default/db-0/postgres at /dev/xvdb\n"; stdout != want {
			t.Errorf("%s: printed %q, want %q", line, stdout, want)
		}
	}
	code, stdout, _ := ctl(t, socket, "attach", "--device=/dev/sdb", "--pid=7", "--path=/dev/x", "--dry-run")
	if want := "This would be done:\n  1. do this\n  2. do that\n"; code != exitDone || stdout != want {
		t.Errorf("a dry run ended with %d and printed %q", code, stdout)
	}
}

func TestWrongCommandLines(t *testing.T) {
	socket := (&plugin{}).serve(t)
	for line, says := range map[string]string{
		"attach": "at least one of the flags in the group [device volume] is required",
		"attach --device a --volume b --pid 1 --path /x": "none of the others can be",
		"attach --device a --path /x":                    "[pod container pid] is required",
		"attach --device a --pid 1":                      "[path] is required",
		"attach --device a --pid one --path /x":          `invalid argument "one" for "--pid"`,
		"attach --device a --pid 1 --path /x --restore":  "none of the others can be",
		"attach --device a --pod db-0 --path /x":         `--pod is "db-0"; expected NAMESPACE/POD`,
		"attach --device a --pod a//b --path /x":         `--pod is "a//b"`,
		"attach --device a --pod a/b/c/d --path /x":      `--pod is "a/b/c/d"`,
		"attach --device a --pid 1 --pod-uid u --path x": `--pod-uid is "u", but --pod is empty`,
		"attach /dev/sdb":                                `unknown command "/dev/sdb"`,
		"attach --device sdb --pid 1 --path /x":          `device is "sdb"; expected an absolute path`,
		"attach --device /dev/a --pid 0 --path /x":       "target names 0 containers",
		"attach --device /dev/a --pid 1 --path x":        `path is "x"`,
		"detach --wait=maybe a":                          `invalid argument "maybe" for "--wait"`,
		"version 1":                                      `unknown command "1" for "rawblockctl version"; see rawblockctl version --help`,
		"detach":                                         "requires at least 1 arg",
		"list -o xml":                                    `--output is "xml"; expected one of`,
		"list --timeout -1s":                             "--timeout is -1s",
		"lsit":                                           `unknown command "lsit" for "rawblockctl"; see rawblockctl --help`,
		"list --verbose":                                 "unknown flag: --verbose",
	} {
		code, stdout, stderr := ctl(t, socket, strings.Fields(line)...)
		if code != exitUsage || stdout != "" || !isOneLine(stderr) || !strings.Contains(stderr, says) {
			t.Errorf("%s: ended with %d, printed %q and %q; want the words %q", line, code, stdout, stderr, says)
		}
	}
}

func isOneLine(text string) bool {
	return strings.HasPrefix(text, "rawblockctl: ") && strings.Index(text, "\n") == len(text)-1
}

func TestExitCodes(t *testing.T) {
	for err, want := range map[error]int{
		errors.New("input/output error"): exitFailed,
		volume.ErrInvalid:                exitUsage,
		volume.ErrNotFound:               exitNotFound,
		volume.ErrInUse:                  exitInUse,
		volume.ErrPrecondition:           exitRefused,
		volume.ErrMismatch:               exitRefused,
		volume.ErrIncompatible:           exitRefused,
		volume.ErrExhausted:              exitRefused,
		volume.ErrOutOfRange:             exitUsage,
		volume.ErrAborted:                exitAgain,
		context.DeadlineExceeded:         exitAgain,
		context.Canceled:                 exitAgain,
	} {
		fake := &plugin{answers: []error{fmt.Errorf("attach: %w", err)}}
		code, stdout, stderr := ctl(t, fake.serve(t), "attach", "--device=/dev/sdb", "--pid=7", "--path=/dev/x")
		if wantSaid := fmt.Sprintf("rawblockctl: attach: %s\n", err); code != want || stdout != "" || stderr != wantSaid {
			t.Errorf("%v: ended with %d, printed %q and %q; want %d", err, code, stdout, stderr, want)
		}
	}
	code, _, stderr := ctl(t, filepath.Join(t.TempDir(), "no.sock"), "list")
	if code != exitUnreachable || !strings.Contains(stderr, "does it run on this node") {
		t.Errorf("without a plugin it ended with %d and %q", code, stderr)
	}
	for _, code := range []int{exitDone, exitFailed, exitUsage, exitNotFound, exitInUse, exitRefused, exitUnreachable, exitAgain, exitInterrupted} {
		if !strings.Contains(exitHelp, fmt.Sprintf("\n  %-3d  ", code)) {
			t.Errorf("the help lacks the exit code %d", code)
		}
	}
}

// What containers call themselves does not get at the terminal, and an error is one
// line whatever it is made of.
func TestErrorsAreOneLine(t *testing.T) {
	fake := &plugin{answers: []error{errors.Join(fmt.Errorf("%w: process 7 (\x1b[2J\u202e)", volume.ErrInUse), errors.New("undo it"))}}
	_, _, stderr := ctl(t, fake.serve(t), "attach", "--device=/dev/sdb", "--pid=7", "--path=/dev/x")
	if want := "rawblockctl: device is in use: process 7 (?[2J?); undo it\n"; stderr != want {
		t.Errorf("it said %q, want %q", stderr, want)
	}
}

func TestDetach(t *testing.T) {
	code, stdout, stderr := ctl(t, (&plugin{}).serve(t), "detach", "a", "b")
	if code != exitDone || stdout != "a: detached\nb: detached\n" || stderr != "" {
		t.Errorf("ended with %d, printed %q and %q", code, stdout, stderr)
	}
	// One that fails does not keep the others.
	fake := &plugin{answers: []error{fmt.Errorf("%w: attachment a", volume.ErrNotFound)}}
	code, stdout, stderr = ctl(t, fake.serve(t), "detach", "a", "b")
	if code != exitNotFound || stdout != "b: detached\n" || stderr != "rawblockctl: not found: attachment a\n" {
		t.Errorf("ended with %d, printed %q and %q", code, stdout, stderr)
	}
}

// Nothing is taken from a process before somebody has said whose volume it is.
func TestDetachByForce(t *testing.T) {
	held := example
	held.ID, held.Holders = "a", []hotplug.Holder{{PID: 4711, Command: "postgres"}}
	for name, test := range map[string]struct {
		args    string
		code    int
		says    string
		revoked []string
	}{
		"confirmed":         {"a --confirm " + source(example), exitDone, "a: detached", []string{"a"}},
		"another volume":    {"a --confirm files/another@node-1", exitUsage, "nothing was done", nil},
		"nothing typed":     {"a", exitUsage, "postgres", nil},
		"by a program":      {"a -o json", exitUsage, "a program confirms it with --confirm " + source(example), nil},
		"no such":           {"b --confirm " + source(example), exitNotFound, "there is no attachment b", nil},
		"two at once":       {"a b --confirm " + source(example), exitUsage, "--force takes the device of one attachment, not of 2", nil},
		"to wait beside it": {"a --wait", exitUsage, "none of the others can be", nil},
	} {
		t.Run(name, func(t *testing.T) {
			fake := &plugin{list: []hotplug.Attachment{held}}
			code, out, text := ctl(t, fake.serve(t), append([]string{"detach", "--force"}, strings.Fields(test.args)...)...)
			if code != test.code || !strings.Contains(out+text, test.says) || !slices.Equal(fake.revoked, test.revoked) {
				t.Errorf("it ends with %d, after %v: %s%s", code, fake.revoked, out, text)
			}
		})
	}
}

func TestDetachHeld(t *testing.T) {
	held := fmt.Errorf("%w: it is open", volume.ErrInUse)
	const said = "device is in use: it is open\nPID   COMMAND\n4711  postgres\n4712  evil?[2J\n"
	fake := &plugin{answers: []error{held}}
	code, stdout, stderr := ctl(t, fake.serve(t), "detach", "a")
	if code != exitInUse || stdout != "" || stderr != "rawblockctl: "+said {
		t.Errorf("ended with %d, printed %q and %q", code, stdout, stderr)
	}
	// It waits, names the holders once, and meanwhile detaches the others.
	for _, last := range []error{nil, volume.ErrNotFound} {
		fake = &plugin{answers: []error{held, nil, held, last}}
		code, stdout, stderr = ctl(t, fake.serve(t), "detach", "--wait", "a", "b")
		if code != exitDone || stdout != "b: detached\na: detached\n" || stderr != "rawblockctl: waiting: "+said {
			t.Errorf("with %v: ended with %d, printed %q and %q", last, code, stdout, stderr)
		}
	}
	fake = &plugin{answers: []error{held, errors.New("input/output error")}}
	if code, _, stderr = ctl(t, fake.serve(t), "detach", "--wait", "a"); code != exitFailed || !strings.HasSuffix(stderr, "\nrawblockctl: input/output error\n") {
		t.Errorf("where it fails on the way it ended with %d and %q", code, stderr)
	}
	fake = &plugin{answers: slices.Repeat([]error{held}, 100)}
	code, _, stderr = ctl(t, fake.serve(t), "detach", "--wait", "--timeout=1s", "a")
	if code != exitAgain || !strings.Contains(stderr, "attachment a is held still; the plugin releases it") {
		t.Errorf("after its time it ended with %d and %q", code, stderr)
	}
}

// Ctrl-C ends waiting.
func TestInterrupt(t *testing.T) {
	fake := &plugin{answers: slices.Repeat([]error{volume.ErrInUse}, 100)}
	ctx, interrupt := context.WithCancel(t.Context())
	var stdout, stderr bytes.Buffer
	// It is interrupted once it says that it waits.
	interrupting := writerFunc(func(text []byte) (int, error) {
		interrupt()
		return stderr.Write(text)
	})
	code := run(ctx, []string{"--socket", fake.serve(t), "--timeout=0", "detach", "--wait", "a"}, &stdout, interrupting)
	if code != exitInterrupted || stdout.Len() > 0 || !strings.Contains(stderr.String(), "attachment a is held still") {
		t.Errorf("ended with %d, printed %q and %q", code, &stdout, &stderr)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(text []byte) (int, error) { return f(text) }

// Programs get what has become of each attachment.
func TestDetachAsJSON(t *testing.T) {
	fake := &plugin{answers: []error{nil, volume.ErrInUse, volume.ErrNotFound}}
	code, stdout, _ := ctl(t, fake.serve(t), "detach", "-o", "json", "a", "b", "c")
	var got []hotplug.Attachment
	must(t, json.Unmarshal([]byte(stdout), &got))
	if code != exitInUse || len(got) != 2 || got[0].ID != "a" || got[0].State != "Detached" || got[1].ID != "b" || len(got[1].Holders) != 2 {
		t.Errorf("ended with %d, printed %s", code, stdout)
	}
	fake = &plugin{answers: []error{volume.ErrNotFound}}
	if code, stdout, _ = ctl(t, fake.serve(t), "detach", "-o", "json", "a"); code != exitNotFound || stdout != "[]\n" {
		t.Errorf("ended with %d, printed %s", code, stdout)
	}
}

func TestList(t *testing.T) {
	waiting := hotplug.Attachment{ID: "pod-1-2", Owner: "1-2", State: hotplug.Waiting, Reason: "no container\nof it", Request: hotplug.Request{Volume: "files/a@n", Path: "/dev/x", ReadOnly: true}}
	fake := &plugin{list: []hotplug.Attachment{example, waiting}}
	socket := fake.serve(t)
	for format, want := range map[string]string{
		"table": `ID        STATE     DEVICE     SIZE  CONTAINER                PATH       ACCESS  AGE  REASON
k3jq7dza  Attached  /dev/sdb   1Gi   pod default/db-0/postgres  /dev/xvdb  rw      -    -
pod-1-2   Waiting   files/a@n  -     nothing                  /dev/x     ro      -    no container; of it
`,
		"wide": `ID        STATE     DEVICE     NUMBER  SIZE  CONTAINER                CONTAINER-ID                                                      PID   PATH       ACCESS  OWNER  AGE  REASON
k3jq7dza  Attached  /dev/sdb   8:16    1Gi   pod default/db-0/postgres  0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a  4700  /dev/xvdb  rw      -      -    -
pod-1-2   Waiting   files/a@n  -       -     nothing                  -                                                                 -     /dev/x     ro      1-2    -    no container; of it
`,
	} {
		code, stdout, stderr := ctl(t, socket, "list", "-o", format)
		if diff := cmp.Diff(strings.Fields(want), strings.Fields(stdout)); diff != "" || code != exitDone || stderr != "" {
			t.Errorf("%s: ended with %d, %s (-want +got):\n%s", format, code, stderr, diff)
		}
	}
	code, stdout, _ := ctl(t, socket, "list", "-o", "json")
	var got []hotplug.Attachment
	must(t, json.Unmarshal([]byte(stdout), &got))
	if diff := cmp.Diff(fake.list, got); diff != "" || code != exitDone {
		t.Errorf("ended with %d (-want +got):\n%s", code, diff)
	}
	fake.list = nil
	if _, stdout, _ := ctl(t, socket, "list", "-o", "json"); stdout != "[]\n" {
		t.Errorf("nothing is %q in JSON", stdout)
	}
	if _, stdout, _ := ctl(t, socket, "list"); !strings.HasPrefix(stdout, "Nothing is attached") {
		t.Errorf("nothing is %q in a table", stdout)
	}
}

func TestSize(t *testing.T) {
	for bytes, want := range map[uint64]string{
		0: "", 512: "512", 1024: "1Ki", 1 << 20: "1Mi", 1536 << 20: "1.5Gi", 1000204886016: "931.5Gi", 1 << 40: "1Ti", math.MaxUint64: "16Ei",
	} {
		if got := size(bytes); got != want {
			t.Errorf("%d bytes are %q, want %q", bytes, got, want)
		}
	}
}

func TestVersion(t *testing.T) {
	for _, line := range []string{"version", "--version"} {
		if code, stdout, stderr := ctl(t, "", line); code != exitDone || stdout != "rawblockctl unknown\n" || stderr != "" {
			t.Errorf("%s: ended with %d, printed %q and %q", line, code, stdout, stderr)
		}
	}
}

func TestAge(t *testing.T) {
	out := output{now: time.Unix(1000, 0)}
	if got := out.age(time.Unix(1000-90, 0)); got != "90s" {
		t.Errorf("90 seconds are %q", got)
	}
}

// A shell is offered the IDs that there are.
func TestCompletion(t *testing.T) {
	socket := (&plugin{list: []hotplug.Attachment{example}}).serve(t)
	code, stdout, _ := ctl(t, socket, "__complete", "--socket", socket, "detach", "")
	if code != exitDone || !strings.HasPrefix(stdout, "k3jq7dza\t/dev/sdb in pod default/db-0/postgres\n") {
		t.Errorf("ended with %d, offers %q", code, stdout)
	}
	if _, stdout, _ = ctl(t, socket, "__complete", "--socket", socket, "detach", "k3jq7dza", ""); strings.Contains(stdout, "k3jq7dza") {
		t.Errorf("what is there already is offered again: %q", stdout)
	}
	if _, stdout, _ = ctl(t, socket, "__complete", "list", "--output", ""); !strings.HasPrefix(stdout, "table\nwide\njson\n") {
		t.Errorf("as formats are offered %q", stdout)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if code, stdout, stderr := ctl(t, socket, "completion", shell); code != exitDone || !strings.Contains(stdout, "rawblockctl") {
			t.Errorf("%s: ended with %d, %s", shell, code, stderr)
		}
	}
}
