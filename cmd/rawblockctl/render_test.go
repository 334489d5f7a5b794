package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// terminal opens a terminal of which a test is the screen (pts(4)).
func terminal(t *testing.T) (screen, user *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	rig.Must(t, err)
	t.Cleanup(func() { screen.Close() })
	rig.Must(t, unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	rig.Must(t, err)
	user, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	rig.Must(t, err)
	t.Cleanup(func() { user.Close() })
	return screen, user
}

// There is colour on a terminal alone, and none where its user wants none.
func TestColour(t *testing.T) {
	screen, user := terminal(t)
	for environment, want := range map[string]bool{"TERM=xterm": true, "NO_COLOR=1": false, "TERM=dumb": false, "NO_COLOR=": true} {
		command := exec.CommandContext(rig.Context(t), os.Args[0], "capacity", "--offline", "--socket", t.TempDir()+"/admin.sock")
		command.Env = append(os.Environ(), asProgram+"=1", "TERM=xterm", "NO_COLOR=", environment)
		command.Stdout = user
		rig.Must(t, command.Run())
		shown := make([]byte, 1<<16)
		n, err := screen.Read(shown)
		rig.Must(t, err)
		if got := strings.Contains(string(shown[:n]), "\x1b[1mPOOL\x1b[0m"); got != want {
			t.Errorf("with %s colour is %t: %q", environment, got, shown[:n])
		}
	}
	if coloured(new(bytes.Buffer)) || coloured(os.NewFile(^uintptr(0), "closed")) {
		t.Error("colour where there is no terminal")
	}
	out := output{w: new(bytes.Buffer), colour: true}
	rig.Must(t, out.grid([]string{"A", "B"}, [][]cell{{{"x", red}, {"long", plain}}, {{"wide one", plain}, {"", red}}}))
	if got, want := out.w.(*bytes.Buffer).String(), "\x1b[1mA\x1b[0m         \x1b[1mB\x1b[0m\n\x1b[31mx\x1b[0m         long\nwide one  \x1b[31m-\x1b[0m\n"; got != want {
		t.Errorf("the table is %q, want %q", got, want)
	}
}

func TestProgress(t *testing.T) {
	screen, user := terminal(t)
	rig.Must(t, unix.IoctlSetWinsize(int(user.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 60}))
	bar := newProgress(user, "wiping", 1<<30)
	bar.tell(512 << 20)
	shown := make([]byte, 1<<16)
	n, err := screen.Read(shown)
	rig.Must(t, err)
	if want := "\r\x1b[Kwiping [" + strings.Repeat("#", 15) + strings.Repeat("-", 15) + "]  50 %  512Mi of 1Gi"; string(shown[:n]) != want {
		t.Errorf("the bar is %q, want %q", shown[:n], want)
	}
	bar.began = time.Now().Add(-10 * time.Second)
	if got := bar.line(512<<20, 80); !strings.HasSuffix(got, "  10s left") || len(got) > 80 {
		t.Errorf("half of it in 10 seconds is %q", got)
	}
	if got := bar.line(512<<20, 20); !strings.HasPrefix(got, "wiping  50 %") {
		t.Errorf("without room for a bar it is %q", got)
	}
	lines := new(bytes.Buffer)
	plain := newProgress(lines, "wiping", 100)
	for _, done := range []uint64{5, 10, 11, 100} {
		plain.tell(done)
	}
	plain.end()
	if want := "wiping: 10 % (10 of 100)\nwiping: 100 % (100 of 100)\n"; lines.String() != want {
		t.Errorf("the lines are %q, want %q", lines, want)
	}
}

// The shells get a script, and the commands and what they are about.
func TestCompletionOfTheNode(t *testing.T) {
	w := newWard(t)
	p := w.admit(t, "files", "offered", "")
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if code, stdout, _ := w.ctl(t, "completion", shell); code != exitDone || !strings.Contains(stdout, "rawblockctl") {
			t.Errorf("%s: ended with %d and %q", shell, code, stdout)
		}
	}
	for line, says := range map[string]string{
		"__complete ":                   "doctor\tFind what is left over",
		"__complete inspect ":           p.ID + "\tUnused",
		"__complete release ":           p.ID,
		"__complete status -o ":         "yaml",
		"__complete wipe --method ":     "secure",
		"__complete --offline inspect ": p.ID,
	} {
		args := strings.Split(line, " ")
		if _, stdout, _ := w.ctlAfter(t, args...); !strings.Contains(stdout, says) {
			t.Errorf("%q offers %q, without %q", line, stdout, says)
		}
	}
}

// ctlAfter runs a hidden command of completion, which wants its own name first.
func (w *ward) ctlAfter(t *testing.T, args ...string) (int, string, string) {
	t.Helper()
	command := exec.CommandContext(rig.Context(t), os.Args[0], append([]string{args[0], "--socket", w.socket(), "--config", w.config, "--kubelet-dir", w.kubeletDir, "--node-id", w.name}, args[1:]...)...)
	command.Env = append(os.Environ(), asProgram+"=1")
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	command.Run() //nolint:errcheck // The exit code tells.
	return command.ProcessState.ExitCode(), out.String(), errs.String()
}

// The questions of doctor --fix: what is not answered with yes is left.
func TestDoctorAsks(t *testing.T) {
	w := newWard(t)
	p := w.admit(t, "files", "asked", "")
	rig.Must(t, p.Stage(rig.Context(t)))
	rig.Must(t, os.RemoveAll(strings.TrimSuffix(p.note, "/data/vol_data.json")))
	for _, test := range []struct {
		answer string
		code   int
		says   string
	}{{"", exitFindings, "OrphanStage"}, {"n\n", exitFindings, "OrphanStage"}, {"maybe\n", exitFindings, "OrphanStage"}, {"y\n", exitDone, "All of it is mended."}} {
		command := exec.CommandContext(rig.Context(t), os.Args[0], "--socket", w.socket(), "doctor", "--fix")
		command.Env = append(os.Environ(), asProgram+"=1")
		command.Stdin = strings.NewReader(test.answer)
		var stdout, stderr bytes.Buffer
		command.Stdout, command.Stderr = &stdout, &stderr
		command.Run() //nolint:errcheck // The exit code tells.
		if code := command.ProcessState.ExitCode(); code != test.code || !strings.Contains(stdout.String(), test.says) || !strings.Contains(stderr.String(), "Mend it: forget that it is staged") {
			t.Errorf("answered with %q it ended with %d, %q and %q", test.answer, code, &stdout, &stderr)
		}
	}
	w.wantHealthy(t, "once it is mended")
}
