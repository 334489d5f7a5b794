package admin_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/rawblock-csi/rawblock-csi/pkg/admin"
	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// attachments is a fake, for errors that cannot be provoked at will.
// cmd/rawblockctl/node_test.go has the real ones behind this socket.
type attachments struct {
	attach func(context.Context, hotplug.Request) (hotplug.Attachment, error)
	plan   func(hotplug.Request) (hotplug.Plan, error)
	detach func(context.Context, string) (hotplug.Attachment, error)
	list   func() ([]hotplug.Attachment, error)
}

func (a attachments) Attach(ctx context.Context, request hotplug.Request) (hotplug.Attachment, error) {
	return a.attach(ctx, request)
}

func (a attachments) Plan(_ context.Context, request hotplug.Request) (hotplug.Plan, error) {
	return a.plan(request)
}

func (a attachments) Detach(ctx context.Context, id string) (hotplug.Attachment, error) {
	return a.detach(ctx, id)
}

func (a attachments) Revoke(ctx context.Context, id string) (hotplug.Attachment, error) {
	return a.detach(ctx, "forced "+id)
}

func (a attachments) List(context.Context) ([]hotplug.Attachment, error) { return a.list() }

// serve serves until the test ends, and returns the socket and what was logged.
func serve(t *testing.T, served attachments) (path string, log func() string) {
	t.Helper()
	// The paths of sockets must be short (unix(7)).
	dir, err := os.MkdirTemp("", "rb")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "state", "admin.sock")
	logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.Verbosity(2), ktesting.BufferLogs(true)))
	ctx, stop := context.WithCancel(klog.NewContext(context.WithoutCancel(t.Context()), logger))
	ended := make(chan error, 1)
	go func() { ended <- admin.Serve(ctx, path, served, nil) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("it ended with: %v", err)
		}
	})
	waitFor(t, path)
	return path, logger.GetSink().(ktesting.Underlier).GetBuffer().String
}

// waitFor waits until somebody listens on a socket.
func waitFor(t *testing.T, path string) {
	t.Helper()
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
			return
		}
		if !errors.Is(err, fs.ErrNotExist) && !strings.Contains(err.Error(), "refused") {
			t.Fatal(err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var (
	request  = hotplug.Request{Device: "/dev/sdb", Target: hotplug.Target{Pod: &hotplug.Pod{Namespace: "default", Name: "db-0"}}, Path: "/dev/xvdb", ReadOnly: true}
	attached = hotplug.Attachment{ID: "abc", Request: request, State: hotplug.Attached, Number: "8:16", Size: 1 << 20}
)

func TestCalls(t *testing.T) {
	plan := hotplug.Plan{Attachment: attached, Steps: []string{"one", "two"}}
	socket, log := serve(t, attachments{
		attach: func(_ context.Context, got hotplug.Request) (hotplug.Attachment, error) {
			return attached, check(got)
		},
		plan: func(got hotplug.Request) (hotplug.Plan, error) { return plan, check(got) },
		detach: func(_ context.Context, id string) (hotplug.Attachment, error) {
			if id != "a/b c" && id != "forced a/b c" {
				return hotplug.Attachment{}, fmt.Errorf("detached %q", id)
			}
			return attached, nil
		},
		list: func() ([]hotplug.Attachment, error) { return []hotplug.Attachment{attached}, nil },
	})
	client, ctx := admin.NewClient(socket), t.Context()
	got, err := client.Attach(ctx, request)
	want(t, attached, got, err)
	gotPlan, err := client.Plan(ctx, request)
	want(t, plan, gotPlan, err)
	got, err = client.Detach(ctx, "a/b c")
	want(t, attached, got, err)
	list, err := client.List(ctx)
	want(t, []hotplug.Attachment{attached}, list, err)
	got, err = client.Revoke(ctx, "a/b c")
	want(t, attached, got, err)
	for _, words := range []string{"Admin call done", `method="Attach"`, `method="Detach"`, "duration="} {
		if !strings.Contains(log(), words) {
			t.Errorf("the log lacks %q:\n%s", words, log())
		}
	}
	info, err := os.Stat(socket)
	must(t, err)
	if info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket has mode %v", info.Mode())
	}
}

func check(got hotplug.Request) error {
	if diff := cmp.Diff(request, got); diff != "" {
		return errors.New(diff)
	}
	return nil
}

func want[T any](t *testing.T, want, got T, err error) {
	t.Helper()
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Nothing is a list too: programs that read JSON go through it.
func TestEmptyList(t *testing.T) {
	socket, _ := serve(t, attachments{list: func() ([]hotplug.Attachment, error) { return nil, nil }})
	list, err := admin.NewClient(socket).List(t.Context())
	if err != nil || list == nil || len(list) != 0 {
		t.Errorf("got %v, %v", list, err)
	}
}

// An error comes with the words and the sentinel that it left with.
func TestErrors(t *testing.T) {
	for _, sentinel := range []error{
		volume.ErrInvalid, volume.ErrNotFound, volume.ErrIncompatible, volume.ErrPrecondition, volume.ErrInUse, volume.ErrMismatch,
		volume.ErrAborted, volume.ErrExhausted, volume.ErrOutOfRange, context.Canceled, context.DeadlineExceeded,
	} {
		t.Run(sentinel.Error(), func(t *testing.T) {
			failed := fmt.Errorf("do it: %w: because", sentinel)
			socket, log := serve(t, attachments{attach: func(context.Context, hotplug.Request) (hotplug.Attachment, error) {
				return hotplug.Attachment{}, failed
			}})
			_, err := admin.NewClient(socket).Attach(t.Context(), request)
			if !errors.Is(err, sentinel) || err.Error() != failed.Error() {
				t.Errorf("got %v; want %v", err, failed)
			}
			if !strings.Contains(log(), "Admin call refused") || strings.Contains(log(), "ERROR") {
				t.Errorf("the log has no refusal, or an error:\n%s", log())
			}
		})
	}
}

func TestOtherErrors(t *testing.T) {
	socket, log := serve(t, attachments{
		attach: func(context.Context, hotplug.Request) (hotplug.Attachment, error) {
			return hotplug.Attachment{}, errors.New("input/output error")
		},
		list: func() ([]hotplug.Attachment, error) { panic("a fault") },
	})
	client := admin.NewClient(socket)
	if _, err := client.Attach(t.Context(), request); err == nil || err.Error() != "input/output error" {
		t.Errorf("got %v", err)
	}
	if _, err := client.List(t.Context()); err == nil || !strings.Contains(err.Error(), "the plugin has a fault") {
		t.Errorf("got %v", err)
	}
	for _, words := range []string{"a fault", "admin_test.go", `Admin call failed err="input/output error"`, `method="Attach" code="Internal"`} {
		if !strings.Contains(log(), words) {
			t.Errorf("the log lacks %q:\n%s", words, log())
		}
	}
	for _, id := range []string{"", ".", ".."} {
		if _, err := client.Detach(t.Context(), id); !errors.Is(err, volume.ErrInvalid) {
			t.Errorf("%q: got %v", id, err)
		}
	}
}

// Who holds a device is told with the error.
func TestHeld(t *testing.T) {
	held := attached
	held.State, held.Holders = hotplug.Held, []hotplug.Holder{{PID: 7, Command: "postgres"}}
	socket, _ := serve(t, attachments{detach: func(context.Context, string) (hotplug.Attachment, error) {
		return held, fmt.Errorf("%w: open in process 7", volume.ErrInUse)
	}})
	got, err := admin.NewClient(socket).Detach(t.Context(), "abc")
	if !errors.Is(err, volume.ErrInUse) {
		t.Errorf("got %v", err)
	}
	want(t, held, got, nil)
}

// A request is what it says, or an error that names what is wrong.
func TestBadRequests(t *testing.T) {
	socket, _ := serve(t, attachments{attach: func(context.Context, hotplug.Request) (hotplug.Attachment, error) {
		t.Error("a bad request was carried out")
		return hotplug.Attachment{}, nil
	}})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", socket)
	}}}
	for name, test := range map[string]struct{ method, path, body, says string }{
		"no JSON":       {http.MethodPost, "/v1/attachments", "device", "invalid character"},
		"nothing":       {http.MethodPost, "/v1/attachments", "", "EOF"},
		"unknown field": {http.MethodPost, "/v1/attachments", `{"readonly2": true}`, "readonly2"},
		"two":           {http.MethodPost, "/v1/attachments", `{} {}`, "more than one"},
		"too much":      {http.MethodPost, "/v1/attachments", `{"device": "` + strings.Repeat("x", 80<<10) + `"}`, "too large"},
		"no such path":  {http.MethodGet, "/v2/attachments", "", "404"},
		"wrong method":  {http.MethodPut, "/v1/attachments", "{}", "Method Not Allowed"},
		"other query":   {http.MethodPost, "/v1/attachments?dryrun", "{}", "the query is \\\"dryrun\\\"; expected dryRun, or none"},
		"no dry run":    {http.MethodPost, "/v1/attachments?dryRun=false", "{}", "expected dryRun, or none"},
		"two queries":   {http.MethodPost, "/v1/attachments?dryRun&x", "{}", "expected dryRun, or none"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), test.method, "http://plugin"+test.path, strings.NewReader(test.body))
			must(t, err)
			response, err := client.Do(r)
			must(t, err)
			defer response.Body.Close()
			answer := new(strings.Builder)
			response.Write(answer)
			if response.StatusCode == http.StatusOK || !strings.Contains(answer.String(), test.says) {
				t.Errorf("it answers %s; want the words %q", answer, test.says)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	for name, path := range map[string]string{
		"no socket":        dir + "/admin.sock",
		"stale socket":     leaveSocket(t, dir),
		"no directory":     dir + "/no/admin.sock",
		"too long":         "/" + strings.Repeat("x", 200),
		"not a socket":     "/dev/null",
		"no path":          "",
		"a directory only": dir,
	} {
		_, err := admin.NewClient(path).List(t.Context())
		if !errors.Is(err, admin.ErrUnreachable) || !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), "no plugin answers on "+path) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	socket, _ := serve(t, attachments{list: func() ([]hotplug.Attachment, error) { return nil, nil }})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := admin.NewClient(socket).List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestServeTakesNothingAway(t *testing.T) {
	socket, _ := serve(t, attachments{})
	if err := admin.Serve(t.Context(), socket, attachments{}, nil); !errors.Is(err, volume.ErrPrecondition) {
		t.Errorf("a second one ended with %v", err)
	}
}

// leaveSocket makes a socket that nobody listens on any more.
func leaveSocket(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "stale.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	must(t, err)
	listener.SetUnlinkOnClose(false) // As when its process is killed.
	must(t, listener.Close())
	return path
}

// The call of a client that has gone is told so, and can undo what it has begun.
func TestClientGoesAway(t *testing.T) {
	begun, ended := make(chan bool), make(chan error)
	work := func(ctx context.Context) error {
		begun <- true
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	socket, _ := serve(t, attachments{
		attach: func(ctx context.Context, _ hotplug.Request) (hotplug.Attachment, error) {
			return attached, work(ctx)
		},
		detach: func(ctx context.Context, _ string) (hotplug.Attachment, error) { return attached, work(ctx) },
	})
	client := admin.NewClient(socket)
	for name, call := range map[string]func(context.Context) error{
		"attach": func(ctx context.Context) error { _, err := client.Attach(ctx, request); return err },
		"detach": func(ctx context.Context) error { _, err := client.Detach(ctx, "abc"); return err },
	} {
		ctx, leave := context.WithCancel(t.Context())
		answered := make(chan error)
		go func() { answered <- call(ctx) }()
		<-begun
		leave()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: the call's context ended with %v", name, err)
		}
		if err := <-answered; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "may have been done") {
			t.Errorf("%s: the client got %v", name, err)
		}
	}
}

// A plugin that is stopped answers the calls that run.
func TestStop(t *testing.T) {
	begun, finish := make(chan bool), make(chan bool)
	dir, err := os.MkdirTemp("", "rb")
	must(t, err)
	defer os.RemoveAll(dir)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	path := filepath.Join(dir, "admin.sock")
	go func() {
		ended <- admin.Serve(ctx, path, attachments{attach: func(ctx context.Context, _ hotplug.Request) (hotplug.Attachment, error) {
			begun <- true
			<-finish
			return attached, ctx.Err()
		}}, nil)
	}()
	waitFor(t, path)
	answered := make(chan error)
	go func() {
		_, err := admin.NewClient(path).Attach(t.Context(), request)
		answered <- err
	}()
	<-begun
	stop()
	for { // It takes no more calls.
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	finish <- true
	if err := <-answered; err != nil {
		t.Errorf("a call that ran was answered with %v", err)
	}
	must(t, <-ended)
}
