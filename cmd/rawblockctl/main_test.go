package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
// test/hotplug has the real plugin with real containers.
type plugin struct {
	asked hotplug.Request
	list  []hotplug.Attachment
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
	if errors.Is(err, volume.ErrInUse) {
		attachment.Holders = []hotplug.Holder{{PID: 4711, Command: "postgres"}, {PID: 4712, Command: "evil\x1b[2J"}}
	}
	return attachment, err
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
	folder, err := os.MkdirTemp("", "rb")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(folder) })
	socket := filepath.Join(folder, "admin.sock")
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- admin.Serve(ctx, socket, p) }()
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
		"detach":                                         "requires at least 1 arg",
		"list -o yaml":                                   `--output is "yaml"; expected one of`,
		"list --timeout -1s":                             "--timeout is -1s",
		"lsit":                                           `unknown command "lsit"`,
		"list --verbose":                                 "unknown flag: --verbose",
	} {
		code, stdout, stderr := ctl(t, socket, strings.Fields(line)...)
		if code != exitUsage || stdout != "" || !strings.HasPrefix(stderr, "rawblockctl: ") || !strings.Contains(stderr, says) {
			t.Errorf("%s: ended with %d, printed %q and %q; want the words %q", line, code, stdout, stderr, says)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for err, want := range map[error]int{
		errors.New("input/output error"): exitFailed,
		volume.ErrInvalid:                exitUsage,
		volume.ErrNotFound:               exitNotFound,
		volume.ErrInUse:                  exitInUse,
		volume.ErrPrecondition:           exitRefused,
		volume.ErrMismatch:               exitRefused,
		volume.ErrAborted:                exitAgain,
		context.DeadlineExceeded:         exitAgain,
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
	for code := exitDone; code <= exitAgain; code++ {
		if !strings.Contains(exitHelp, fmt.Sprintf("\n  %d  ", code)) {
			t.Errorf("the help lacks the exit code %d", code)
		}
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

func TestDetachHeld(t *testing.T) {
	held := fmt.Errorf("%w: it is open", volume.ErrInUse)
	const holders = "PID   COMMAND\n4711  postgres\n4712  evil?[2J\n"
	fake := &plugin{answers: []error{held}}
	code, stdout, stderr := ctl(t, fake.serve(t), "detach", "a")
	if code != exitInUse || stdout != "" || stderr != holders+"rawblockctl: device is in use: it is open\n" {
		t.Errorf("ended with %d, printed %q and %q", code, stdout, stderr)
	}
	// It waits, and names the holders once.
	for _, last := range []error{nil, volume.ErrNotFound} {
		fake = &plugin{answers: []error{held, held, last}}
		code, stdout, stderr = ctl(t, fake.serve(t), "detach", "--wait", "a")
		if code != exitDone || stdout != "a: detached\n" || stderr != holders {
			t.Errorf("with %v: ended with %d, printed %q and %q", last, code, stdout, stderr)
		}
	}
	fake = &plugin{answers: slices.Repeat([]error{held}, 100)}
	code, _, stderr = ctl(t, fake.serve(t), "detach", "--wait", "--timeout=1ms", "a")
	if code != exitAgain {
		t.Errorf("after its time it ended with %d and %q", code, stderr)
	}
}

func TestList(t *testing.T) {
	waiting := hotplug.Attachment{ID: "pod-1-2", Owner: "1-2", State: hotplug.Waiting, Reason: "no container\nof it", Request: hotplug.Request{Volume: "files/a@n", Path: "/dev/x", ReadOnly: true}}
	fake := &plugin{list: []hotplug.Attachment{example, waiting}}
	socket := fake.serve(t)
	for format, want := range map[string]string{
		"table": `ID        STATE     DEVICE     SIZE  CONTAINER                PATH       ACCESS  AGE  REASON
k3jq7dza  Attached  /dev/sdb   1Gi   pod default/db-0/postgres  /dev/xvdb  rw      -    -
pod-1-2   Waiting   files/a@n  -     nothing                  /dev/x     ro      -    no container?of it
`,
		"wide": `ID        STATE     DEVICE     NUMBER  SIZE  CONTAINER                CONTAINER-ID                                                      PID   PATH       ACCESS  OWNER  AGE  REASON
k3jq7dza  Attached  /dev/sdb   8:16    1Gi   pod default/db-0/postgres  0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a  4700  /dev/xvdb  rw      -      -    -
pod-1-2   Waiting   files/a@n  -       -     nothing                  -                                                                 -     /dev/x     ro      1-2    -    no container?of it
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
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if code, stdout, stderr := ctl(t, socket, "completion", shell); code != exitDone || !strings.Contains(stdout, "rawblockctl") {
			t.Errorf("%s: ended with %d, %s", shell, code, stderr)
		}
	}
}
