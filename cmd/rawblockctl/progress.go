package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// progress shows how far something long is: on a terminal as a bar, elsewhere as a
// line for each tenth.
type progress struct {
	w     io.Writer
	what  string
	total uint64
	// bar says that there is a terminal.
	bar   bool
	began time.Time
	drawn time.Time
	// tenths are those that were told.
	tenths uint64
}

func newProgress(w io.Writer, what string, total uint64) *progress {
	return &progress{w: w, what: what, total: total, bar: isTerminal(w), began: time.Now()}
}

// redraw is how often the bar is drawn.
const redraw = 200 * time.Millisecond

// tell shows that so many bytes are done.
func (p *progress) tell(done uint64) {
	if p.total == 0 {
		return
	}
	if !p.bar {
		if tenths := done * 10 / p.total; tenths > p.tenths {
			p.tenths = tenths
			fmt.Fprintf(p.w, "%s: %d %% (%s of %s)\n", p.what, tenths*10, size(done), size(p.total)) //nolint:errcheck,gosec // There is nowhere else to say it.
		}
		return
	}
	if time.Since(p.drawn) < redraw && done < p.total {
		return
	}
	p.drawn = time.Now()
	fmt.Fprint(p.w, "\r\x1b[K", p.line(done, width(p.w))) //nolint:errcheck,gosec // There is nowhere else to say it.
}

// end ends the line of the bar.
func (p *progress) end() {
	if p.bar && !p.drawn.IsZero() {
		fmt.Fprintln(p.w) //nolint:errcheck,gosec // There is nowhere else to say it.
	}
}

// line is the bar in so many columns.
func (p *progress) line(done uint64, columns int) string {
	percent := done * 100 / p.total
	facts := fmt.Sprintf(" %3d %%  %s of %s", percent, orDash(size(done)), size(p.total))
	if elapsed := time.Since(p.began); done > 0 && done < p.total && elapsed > time.Second {
		left := time.Duration(float64(elapsed) / float64(done) * float64(p.total-done)).Round(time.Second)
		facts += fmt.Sprintf("  %s left", left)
	}
	const least = 10
	room := columns - len(p.what) - len(facts) - len(" []") - 1
	if room < least {
		return p.what + facts
	}
	full := int(float64(room) * float64(done) / float64(p.total))
	return p.what + " [" + strings.Repeat("#", full) + strings.Repeat("-", room-full) + "]" + facts
}

func orDash(text string) string {
	if text == "" {
		return "0"
	}
	return text
}

// width is the width of a terminal in columns.
func width(w io.Writer) int {
	const usual = 80
	if file, ok := w.(*os.File); ok {
		if columns, _, err := term.GetSize(int(file.Fd())); err == nil && columns > 0 { //nolint:gosec // Descriptors are small.
			return columns
		}
	}
	return usual
}
