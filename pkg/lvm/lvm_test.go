package lvm_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/lvm"
	"github.com/rawblock-csi/rawblock-csi/pkg/program"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// answers stands for the lvm program: it keeps what it is called with, and gives answers
// in their order. What the real one does is tested in a guest machine (test/vm/lvm).
type answers struct {
	calls   []string
	answers []answer
}

type answer struct {
	stdout string
	err    error
}

func (a *answers) Run(_ context.Context, c program.Command) ([]byte, error) {
	a.calls = append(a.calls, c.String())
	if len(a.answers) == 0 {
		return nil, nil
	}
	next := a.answers[0]
	a.answers = a.answers[1:]
	return []byte(next.stdout), next.err
}

// devices are what lvm may look at.
func devices() ([]string, error) { return []string{"/dev/sda", "/dev/sdb1"}, nil }

const uuid = "ci70MU-f3m1-iDnd-CQfl-E314-OKfc-0ZCIHw"

func TestCommandLines(t *testing.T) {
	attributes := lvm.Attributes{Name: "a.b", Tags: []string{"rawblock.volume=p/x", "rawblock.wipe=zero"}, Size: 8 << 20}
	const common = " --activate n --setactivationskip y --permission rw --name a.b --addtag rawblock.volume=p/x --addtag rawblock.wipe=zero "
	snapshot := attributes
	snapshot.ReadOnly = true
	for want, change := range map[string]func(context.Context, *lvm.LVM) error{
		"lvcreate" + common + "--type linear --zero n --wipesignatures n --size 8388608b vg-0": func(ctx context.Context, l *lvm.LVM) error {
			return l.CreateLinear(ctx, "vg-0", attributes)
		},
		"lvcreate" + common + "--type thin --virtualsize 8388608b --thinpool vg-0/tp": func(ctx context.Context, l *lvm.LVM) error {
			return l.CreateThin(ctx, "vg-0", "tp", attributes)
		},
		"lvcreate" + strings.Replace(common, "rw", "r", 1) + "--snapshot vg-0/from": func(ctx context.Context, l *lvm.LVM) error {
			return l.Snapshot(ctx, "vg-0", "from", snapshot)
		},
		"lvextend --size 512b vg-0/a": func(ctx context.Context, l *lvm.LVM) error {
			return l.Extend(ctx, "vg-0", "a", 512)
		},
		"lvextend --size 512b vg-0/a /dev/sda:0-7 /dev/mapper/x-y:3-3": func(ctx context.Context, l *lvm.LVM) error {
			return l.Extend(ctx, "vg-0", "a", 512, "/dev/sda:0-7", "/dev/mapper/x-y:3-3")
		},
		"lvrename vg-0 a b": func(ctx context.Context, l *lvm.LVM) error { return l.Rename(ctx, "vg-0", "a", "b") },
		"lvchange --deltag a=1 --addtag b=2 --addtag c --select lv_uuid=" + uuid + " vg-0": func(ctx context.Context, l *lvm.LVM) error {
			return l.Retag(ctx, "vg-0", uuid, []string{"a=1"}, []string{"b=2", "c"})
		},
		"lvchange --activate y --ignoreactivationskip --select lv_uuid=" + uuid + " vg-0": func(ctx context.Context, l *lvm.LVM) error {
			return l.Activate(ctx, "vg-0", uuid)
		},
		"lvchange --activate n --select lv_uuid=" + uuid + " vg-0": func(ctx context.Context, l *lvm.LVM) error {
			return l.Deactivate(ctx, "vg-0", uuid)
		},
		"lvchange --refresh --select lv_uuid=" + uuid + " vg-0": func(ctx context.Context, l *lvm.LVM) error {
			return l.Refresh(ctx, "vg-0", uuid)
		},
		"lvremove --yes --select lv_uuid=" + uuid + " vg-0": func(ctx context.Context, l *lvm.LVM) error {
			return l.Remove(ctx, "vg-0", uuid)
		},
	} {
		programs := &answers{}
		if err := change(t.Context(), lvm.New(programs, devices)); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		command, rest, _ := strings.Cut(want, " ")
		want = "lvm " + command + " --devices /dev/sda,/dev/sdb1 " + rest
		if len(programs.calls) != 1 || programs.calls[0] != want {
			t.Errorf("ran %q\nwant %q", programs.calls, want)
		}
	}
}

// Nothing that is handed over can be an option, a path, or more than one word.
func TestNamesAreChecked(t *testing.T) {
	for _, name := range []string{"", "-a", "--help", "a/b", "/dev/a", "a b", "a\x00", "a\n", ".", "..", "ü", "@tag", strings.Repeat("a", 128)} {
		programs := &answers{}
		l, ctx := lvm.New(programs, devices), t.Context()
		_, reportErr := l.Report(ctx, name)
		for call, err := range map[string]error{
			"report":        reportErr,
			"group":         l.CreateLinear(ctx, name, lvm.Attributes{Name: "a"}),
			"name":          l.CreateThin(ctx, "vg", "tp", lvm.Attributes{Name: name}),
			"thin pool":     l.CreateThin(ctx, "vg", name, lvm.Attributes{Name: "a"}),
			"origin":        l.Snapshot(ctx, "vg", name, lvm.Attributes{Name: "a"}),
			"extend":        l.Extend(ctx, "vg", name, 1),
			"extents":       l.Extend(ctx, "vg", "a", 1, name),
			"rename":        l.Rename(ctx, "vg", name, "b"),
			"rename to":     l.Rename(ctx, "vg", "a", name),
			"UUID":          l.Remove(ctx, "vg", name),
			"UUID to make":  l.Activate(ctx, "vg", name),
			"UUID of tags":  l.Retag(ctx, "vg", name, nil, nil),
			"tag":           l.Retag(ctx, "vg", uuid, nil, []string{"-" + name}),
			"tag with more": l.Retag(ctx, "vg", uuid, []string{"a " + name}, nil),
		} {
			if !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("%s %q: %v", call, name, err)
			}
		}
		if len(programs.calls) > 0 {
			t.Errorf("%q: ran %q", name, programs.calls)
		}
	}
}

func TestErrors(t *testing.T) {
	failed := answer{err: &program.ExitError{Name: "lvm", Code: 5, Stderr: "  WARNING: one.\n\n  Two."}}
	var got *lvm.Error
	if err := lvm.New(&answers{answers: []answer{failed}}, devices).Remove(t.Context(), "vg", uuid); !errors.As(err, &got) || *got != (lvm.Error{Command: "lvremove", Code: lvm.CodeFailed, Message: "WARNING: one.; Two."}) {
		t.Errorf("a command that failed: %v", err)
	}
	missing := answer{err: program.ErrNotInstalled}
	if err := lvm.New(&answers{answers: []answer{missing}}, devices).Remove(t.Context(), "vg", uuid); !errors.Is(err, volume.ErrPrecondition) || !strings.Contains(err.Error(), "install lvm2") {
		t.Errorf("no lvm: %v", err)
	}
	// A group that is not there is told from one that cannot be reported, not by words.
	report := func(groups string) error {
		_, err := lvm.New(&answers{answers: []answer{failed, {stdout: groups}}}, devices).Report(t.Context(), "vg")
		return err
	}
	if err := report(`{"report": [{"vg": [{"vg_name":"other"}]}]}`); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("a group that is not there: %v", err)
	}
	if err := report(`{"report": [{"vg": []}]}`); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("no group: %v", err)
	}
	if err := report(`{"report": [{"vg": [{"vg_name":"vg"}]}]}`); errors.Is(err, volume.ErrNotFound) || !errors.As(err, &got) {
		t.Errorf("a group that is there: %v", err)
	}
	if err := report(`{"report": [{"vg": [{"vg_name":"vg"},{"vg_name":"vg"}]}]}`); !errors.Is(err, lvm.ErrTwice) {
		t.Errorf("two groups: %v", err)
	}
	if err := report("x"); errors.Is(err, volume.ErrNotFound) || err == nil {
		t.Errorf("no report: %v", err)
	}
}

// An lvm that has no --devices is told the same by a filter, and where there is nothing
// that it may look at, it does not run: without a restriction it would look at everything.
func TestDevices(t *testing.T) {
	old := answer{err: &program.ExitError{Name: "lvm", Code: 3, Stderr: "  lvchange: unrecognized option '--devices'\n"}}
	programs := &answers{answers: []answer{old}}
	l := lvm.New(programs, devices)
	for range 2 {
		if err := l.Refresh(t.Context(), "vg", uuid); err != nil {
			t.Fatal(err)
		}
	}
	want := `lvm lvchange --config  devices{global_filter=["a|^/dev/sda$|","a|^/dev/sdb1$|","r|.*|"]} global{use_lvmetad=0} --refresh --select lv_uuid=` + uuid + " vg"
	if len(programs.calls) != 3 || programs.calls[1] != want || programs.calls[2] != want {
		t.Errorf("ran %q, want %q", programs.calls, want)
	}
	programs = &answers{}
	if _, err := lvm.New(programs, func() ([]string, error) { return nil, nil }).Report(t.Context(), "vg"); !errors.Is(err, volume.ErrNotFound) || len(programs.calls) > 0 {
		t.Errorf("a report of no device: %v, ran %q", err, programs.calls)
	}
	for name, list := range map[string]lvm.Devices{
		"none":      func() ([]string, error) { return nil, nil },
		"an error":  func() ([]string, error) { return nil, volume.ErrPrecondition },
		"an option": func() ([]string, error) { return []string{"--config"}, nil },
		"two":       func() ([]string, error) { return []string{"/dev/sda,/dev/loop0"}, nil },
		"a pattern": func() ([]string, error) { return []string{"/dev/s.*|"}, nil },
	} {
		programs := &answers{}
		if err := lvm.New(programs, list).Refresh(t.Context(), "vg", uuid); !errors.Is(err, volume.ErrPrecondition) && !errors.Is(err, volume.ErrInvalid) || len(programs.calls) > 0 {
			t.Errorf("%s: %v, ran %q", name, err, programs.calls)
		}
	}
}
