package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
)

// output prints results in a format.
type output struct {
	w      io.Writer
	format string
	now    time.Time
	// colour says that there is to be colour.
	colour bool
}

func newOutput(w io.Writer, format string) output { return output{w, format, time.Now(), coloured(w)} }

func (o output) json(value any) error {
	encoder := json.NewEncoder(o.w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// table prints rows of cells, the first of which are the headings.
func (o output) table(rows [][]string) error {
	w := tabwriter.NewWriter(o.w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(w, strings.TrimRight(strings.Join(row, "\t"), "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// column is a column of the list of attachments.
type column struct {
	heading string
	cell    func(o output, attachment hotplug.Attachment) string
	// wide says that it is shown only where there is room.
	wide bool
}

var columns = []column{
	{"ID", func(_ output, a hotplug.Attachment) string { return a.ID }, false},
	{"STATE", func(_ output, a hotplug.Attachment) string { return string(a.State) }, false},
	{"DEVICE", func(_ output, a hotplug.Attachment) string { return source(a) }, false},
	{"NUMBER", func(_ output, a hotplug.Attachment) string { return a.Number }, true},
	{"SIZE", func(_ output, a hotplug.Attachment) string { return size(a.Size) }, false},
	{"CONTAINER", func(_ output, a hotplug.Attachment) string { return container(a) }, false},
	{"CONTAINER-ID", func(_ output, a hotplug.Attachment) string { return a.ContainerID }, true},
	{"PID", func(_ output, a hotplug.Attachment) string { return number(a.PID) }, true},
	{"PATH", func(_ output, a hotplug.Attachment) string { return a.Path }, false},
	{"ACCESS", func(_ output, a hotplug.Attachment) string { return access(a) }, false},
	{"OWNER", func(_ output, a hotplug.Attachment) string { return a.Owner }, true},
	{"AGE", func(o output, a hotplug.Attachment) string { return o.age(a.Since) }, false},
	{"REASON", func(_ output, a hotplug.Attachment) string { return a.Reason }, false},
}

func (o output) list(attachments []hotplug.Attachment) error {
	if o.isData() {
		return o.data(attachments)
	}
	if len(attachments) == 0 {
		_, err := fmt.Fprintln(o.w, "Nothing is attached to running containers on this node.")
		return err
	}
	rows := [][]string{nil}
	for _, column := range columns {
		if !column.wide || o.format == outputWide {
			rows[0] = append(rows[0], column.heading)
		}
	}
	for _, attachment := range attachments {
		var row []string
		for _, column := range columns {
			if !column.wide || o.format == outputWide {
				row = append(row, cmp.Or(oneLine(column.cell(o, attachment)), "-"))
			}
		}
		rows = append(rows, row)
	}
	return o.table(rows)
}

func (o output) attachment(attachment hotplug.Attachment) error {
	if o.isData() {
		return o.data(attachment)
	}
	return o.line("%s: %s (%s, %s) is attached to %s at %s", attachment.ID, source(attachment), size(attachment.Size), access(attachment), attachment.Target, attachment.Path)
}

func (o output) plan(plan hotplug.Plan) error {
	if o.isData() {
		return o.data(plan)
	}
	if err := o.line("This would be done:"); err != nil {
		return err
	}
	for i, step := range plan.Steps {
		if err := o.line("  %d. %s", i+1, step); err != nil {
			return err
		}
	}
	return nil
}

// detached prints what has become of attachments that were to be detached.
func (o output) detached(attachments []hotplug.Attachment) error {
	if o.isData() {
		return o.data(append([]hotplug.Attachment{}, attachments...)) // None is [], not null.
	}
	for _, attachment := range attachments {
		if attachment.State != hotplug.Detached {
			continue // That has been told of.
		}
		if err := o.line("%s: detached", attachment.ID); err != nil {
			return err
		}
	}
	return nil
}

// line prints a line.
func (o output) line(format string, args ...any) error {
	_, err := fmt.Fprintln(o.w, oneLine(fmt.Sprintf(format, args...)))
	return err
}

// holders prints who has a device open, if anybody is known to.
func (o output) holders(holders []hotplug.Holder) error {
	if len(holders) == 0 {
		return nil
	}
	rows := [][]string{{"PID", "COMMAND"}}
	for _, holder := range holders {
		rows = append(rows, []string{number(holder.PID), oneLine(holder.Command)})
	}
	return o.table(rows)
}

// source names what is attached.
func source(attachment hotplug.Attachment) string {
	return cmp.Or(attachment.Volume, attachment.Device)
}

// container names the container, by no more of its ID than people read.
func container(attachment hotplug.Attachment) string {
	const enough = 12
	target := attachment.Target
	target.Container = target.Container[:min(enough, len(target.Container))]
	return target.String()
}

func access(attachment hotplug.Attachment) string {
	if attachment.ReadOnly {
		return "ro"
	}
	return "rw"
}

// size is a size for people, in the units of Kubernetes.
func size(bytes uint64) string {
	if bytes == 0 {
		return ""
	}
	value, unit := float64(bytes), 0
	units := []string{"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
	for ; value >= 1024; unit++ {
		value /= 1024
	}
	return strings.TrimSuffix(strconv.FormatFloat(value, 'f', 1, 64), ".0") + units[unit]
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func (o output) age(since time.Time) string {
	if since.IsZero() {
		return ""
	}
	return duration.HumanDuration(o.now.Sub(since))
}

// oneLine keeps what a container may have named, such as its processes, from
// spoiling a table or a terminal.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ReplaceAll(text, "\n", "; "))
}
