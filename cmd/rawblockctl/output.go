package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/rawblock-csi/rawblock-csi/pkg/hotplug"
)

// output prints results in a format.
type output struct {
	w      io.Writer
	format string
	now    time.Time
}

func newOutput(w io.Writer, format string) output { return output{w, format, time.Now()} }

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
	{"CONTAINER", func(_ output, a hotplug.Attachment) string { return a.Target.String() }, false},
	{"CONTAINER-ID", func(_ output, a hotplug.Attachment) string { return a.ContainerID }, true},
	{"PID", func(_ output, a hotplug.Attachment) string { return number(a.PID) }, true},
	{"PATH", func(_ output, a hotplug.Attachment) string { return a.Path }, false},
	{"ACCESS", func(_ output, a hotplug.Attachment) string { return access(a) }, false},
	{"OWNER", func(_ output, a hotplug.Attachment) string { return a.Owner }, true},
	{"AGE", func(o output, a hotplug.Attachment) string { return o.age(a.Since) }, false},
	{"REASON", func(_ output, a hotplug.Attachment) string { return a.Reason }, false},
}

func (o output) list(attachments []hotplug.Attachment) error {
	if o.format == outputJSON {
		return o.json(attachments)
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
	if o.format == outputJSON {
		return o.json(attachment)
	}
	_, err := fmt.Fprintf(o.w, "%s: %s (%s, %s) is attached to %s at %s\n", attachment.ID, source(attachment), size(attachment.Size), access(attachment), attachment.Target, attachment.Path)
	return err
}

func (o output) plan(plan hotplug.Plan) error {
	if o.format == outputJSON {
		return o.json(plan)
	}
	if _, err := fmt.Fprintln(o.w, "This would be done:"); err != nil {
		return err
	}
	for i, step := range plan.Steps {
		if _, err := fmt.Fprintf(o.w, "  %d. %s\n", i+1, step); err != nil {
			return err
		}
	}
	return nil
}

func (o output) detached(attachment hotplug.Attachment) error {
	if o.format == outputJSON {
		return o.json(attachment)
	}
	_, err := fmt.Fprintf(o.w, "%s: detached\n", attachment.ID)
	return err
}

// holders prints who has the device of an attachment open, if anybody is known to.
func (o output) holders(attachment hotplug.Attachment) error {
	if len(attachment.Holders) == 0 {
		return nil
	}
	rows := [][]string{{"PID", "COMMAND"}}
	for _, holder := range attachment.Holders {
		rows = append(rows, []string{number(holder.PID), oneLine(holder.Command)})
	}
	return o.table(rows)
}

// source names what is attached.
func source(attachment hotplug.Attachment) string {
	return cmp.Or(attachment.Volume, attachment.Device)
}

func access(attachment hotplug.Attachment) string {
	if attachment.ReadOnly {
		return "ro"
	}
	return "rw"
}

func size(bytes uint64) string {
	if bytes == 0 {
		return ""
	}
	return resource.NewQuantity(int64(bytes), resource.BinarySI).String() //nolint:gosec // The kernel's own sizes are signed (loff_t).
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

// oneLine keeps what a container may have named from spoiling a table or a terminal.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, text)
}
