package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rawblock-csi/rawblock-csi/pkg/doctor"
	"github.com/rawblock-csi/rawblock-csi/pkg/inspect"
)

func (t *tool) status() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show everything on one screen: pools, disks, volumes, who uses them, what is wrong",
		Long: `Show the pools of this node and what they have to give, its disks and why some are in no pool,
its volumes and who uses them, what is attached to running containers, and what is wrong.
What a disk did while the plugin ran (I/O errors, a size that shrank), and which volumes could not
be staged of late, only the plugin knows.

Disks that no pool wants are left out unless more columns are asked for (-o wide); see
rawblockctl disks.

With -o json or yaml it prints an object with the keys source (plugin: it was asked; node: it
did not answer, and this program has looked), name, time, pools, disks, volumes, attachments,
conditions, errors (what could not be found out) and findings (those of rawblockctl doctor).
All sizes are in bytes. Keys keep their names; new ones may be added.`,
		Example: `  rawblockctl status
  rawblockctl status -o json | jq -r '.volumes[] | select(.state == "Gone") | .id'`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return t.look(command, func(l looking) error {
				node, err := l.Status(l.ctx)
				if err != nil {
					return err
				}
				findings, err := l.Findings(l.ctx)
				if err != nil {
					return err
				}
				if l.out.isData() {
					return l.out.data(status{l.source, node, findings})
				}
				return l.out.status(status{l.source, node, findings})
			})
		},
	}
}

// status is what is printed for programs.
type status struct {
	Source string `json:"source"`
	inspect.Node
	Findings []doctor.Finding `json:"findings"`
}

func (o output) status(s status) error {
	asked := "as the plugin tells"
	if s.Source == fromNode {
		asked = "as the media and the kernel tell; no plugin was asked"
	}
	if err := o.text(plain, "Node %s, %s", s.Name, asked); err != nil {
		return err
	}
	for _, part := range []struct {
		title string
		empty string
		count int
		print func() error
	}{
		{"POOLS", "No pool is configured.", len(s.Pools), func() error { return o.pools(s.Pools) }},
		{"DISKS", "No disk is in a pool.", len(wanted(s.Disks, o.format)), func() error { return o.disks(wanted(s.Disks, o.format)) }},
		{"VOLUMES", "There are no volumes.", len(s.Volumes), func() error { return o.volumes(s.Volumes) }},
		{"ATTACHMENTS", "", len(s.Attachments), func() error { return o.list(s.Attachments) }},
	} {
		if part.count == 0 && part.empty == "" {
			continue
		}
		if err := o.title(part.title); err != nil {
			return err
		}
		if part.count == 0 {
			if err := o.text(plain, "%s", part.empty); err != nil {
				return err
			}
			continue
		}
		if err := part.print(); err != nil {
			return err
		}
	}
	return o.problems(s)
}

// wanted leaves out the disks that no pool wants.
func wanted(disks []inspect.Disk, format string) []inspect.Disk {
	var found []inspect.Disk
	for _, one := range disks {
		if format == outputWide || one.State != "unmatched" {
			found = append(found, one)
		}
	}
	return found
}

// problems prints what is wrong, the worst first.
func (o output) problems(s status) error {
	// What could not be found out is told below, whoever has noticed; a note is no problem.
	findings := slices.DeleteFunc(slices.Clone(s.Findings), func(f doctor.Finding) bool { return f.Check == doctor.Unseen || f.IsNote() })
	count := len(findings) + len(s.Conditions) + len(s.Errors)
	if count == 0 {
		if err := o.title("PROBLEMS"); err != nil {
			return err
		}
		return o.text(green, "None is known.")
	}
	if err := o.title(fmt.Sprintf("PROBLEMS (%d)", count)); err != nil {
		return err
	}
	for _, condition := range s.Conditions {
		if err := o.text(severityColour(condition.Severity), "%s %s, %s: %s", condition.Severity, condition.Reason, condition.Of, strings.TrimPrefix(condition.Message, condition.Of+": ")); err != nil {
			return err
		}
	}
	for _, finding := range findings {
		if err := o.text(yellow, "%s: %s", finding.Check, finding.Message); err != nil {
			return err
		}
	}
	for _, text := range s.Errors {
		if err := o.text(red, "Cannot be found out: %s", text); err != nil {
			return err
		}
	}
	if len(findings) > 0 {
		return o.text(bold, "Type rawblockctl doctor for what to do.")
	}
	return nil
}

func severityColour(severity string) colour {
	if severity == "Degraded" {
		return yellow
	}
	return red
}

func (o output) pools(pools []inspect.Pool) error {
	var rows [][]cell
	for _, pool := range pools {
		rows = append(rows, []cell{
			{pool.Name, plain},
			{pool.Kind, plain},
			{orDash(size(pool.Available)), plain},
			{orDash(size(pool.MaxVolume)), plain},
			{orDash(size(pool.Promised)), plain},
			{size(pool.Wiping), yellow},
			{fmt.Sprint(pool.Volumes), plain},
			{number(pool.Disks), plain},
			{pool.Error, red},
		})
	}
	return o.grid([]string{"POOL", "KIND", "AVAILABLE", "LARGEST", "PROMISED", "WIPING", "VOLUMES", "DISKS", "ERROR"}, rows)
}

func (o output) disks(disks []inspect.Disk) error {
	headings := []string{"DISK", "SIZE", "STATE", "POOL", "FREE", "WIPING"}
	if o.format == outputWide {
		headings = append(headings, "TRANSPORT", "MODEL", "SERIAL", "WWID", "ID")
	}
	var rows [][]cell
	for _, one := range disks {
		state, left, reason := yellow, uint64(0), one.Reason
		if one.State == inspect.Adopted {
			state = green
		}
		for _, wiping := range one.Wiping {
			left += wiping.Left
			if wiping.Error != "" {
				reason = "wiping fails: " + wiping.Error
			}
		}
		row := []cell{{one.Path, plain}, {size(one.Size), plain}, {one.State, state}, {one.Pool, plain}, {size(one.Free), plain}, {size(left), yellow}}
		if o.format == outputWide {
			row = append(row, cell{one.Transport, plain}, cell{one.Model, plain}, cell{one.Serial, plain}, cell{one.WWID, plain}, cell{one.ID, plain})
		}
		rows = append(rows, append(row, cell{reason, plain}))
	}
	return o.grid(append(headings, "REASON"), rows)
}

var stateColours = map[inspect.State]colour{inspect.Gone: red, inspect.Published: green, inspect.Attached: green}

func (o output) volumes(volumes []inspect.Volume) error {
	headings := []string{"VOLUME", "SIZE", "STATE", "DEVICE", "USED-BY"}
	if o.format == outputWide {
		headings = append(headings, "NUMBER", "ACCESS-MODE", "TARGETS")
	}
	var rows [][]cell
	for _, one := range volumes {
		var users, targets []string
		for _, user := range one.Users {
			users, targets = append(users, user.String()), append(targets, user.Target)
		}
		for _, id := range one.Attachments {
			users = append(users, "attachment "+id)
		}
		row := []cell{{one.ID, plain}, {size(one.Size), plain}, {string(one.State), stateColours[one.State]}, {one.Device, plain}, {strings.Join(users, ", "), plain}}
		if o.format == outputWide {
			row = append(row, cell{one.Number, plain}, cell{one.AccessMode, plain}, cell{strings.Join(targets, ", "), plain})
		}
		rows = append(rows, row)
	}
	return o.grid(headings, rows)
}
