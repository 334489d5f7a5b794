package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rawblock-csi/rawblock-csi/pkg/doctor"
	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// errFindings says that something is left over or wrong.
var errFindings = errors.New("findings remain")

func (t *tool) doctor() *cobra.Command {
	d := &mending{tool: t}
	command := &cobra.Command{
		Use:   "doctor",
		Short: "Find what is left over or wrong, say what it means and what to do, and mend it",
		Long: `Find what calls that did not end, and people, have left on this node: mounts for pods that are
gone, loop devices and records that stand for nothing, disks of pools that are not configured,
damaged copies of partition tables, files that are deleted under their devices, and more.

Of each finding it says what it means and what to do. With --fix it mends those with which
nothing can be lost, and asks before each one unless there is --yes. It never touches what a
process has open, nor what is not provably this driver's. Where no plugin answers it keeps one
from starting while it mends.

It ends with 0 where nothing is found, or all of it was mended, and with 8 where something
remains.

With -o json or yaml it prints a list of the findings with the keys id, check, subject, message,
meaning, remedy, fix (what --fix does; missing where it does nothing), result (found, mended,
declined, failed, note) and error.

Checks:
  OrphanPublish       a volume is published for a pod that kubelet does not know
  StackedMounts       several mounts are stacked on one target
  StaleLoop           a loop device of a volume that nobody uses
  StaleView           a read-only view that is mounted nowhere
  StaleLock           kubelet's lock over a device, without its mount
  ForeignHolder       the host has made something of a volume that no pod has
  BackingDeleted      the file under a device is deleted, with all its data
  StageWithoutDevice  a volume is staged, and its device has gone
  OrphanStage         a volume is staged, and kubelet does not know it
  OldRecord           a record of an earlier boot
  DamagedRecord       a record that cannot be read
  DeadAttachment      an attachment whose disk has gone, or a claim without one
  NodeOnHost          the node of an attachment, made on the host and not in its container
  OrphanClaim         a disk belongs to a pool that is not configured
  DamagedTable        a copy of a disk's partition table is damaged
  FailedWipe          a space cannot be wiped
  ErrorMapping        a device-mapper table fails all I/O
  Unseen              something could not be looked at
  PodsUnseen          a note, which does not count: OrphanPublish was not looked for, since
                      the plugin's container does not have kubelet's pods`,
		Example: `  rawblockctl doctor
  rawblockctl doctor --fix
  rawblockctl doctor --fix --yes -o json`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return t.look(command, func(l looking) error { return d.run(command, l) })
		},
	}
	command.Flags().BoolVar(&d.fix, "fix", false, "mend what can be mended without a loss")
	command.Flags().BoolVar(&d.yes, "yes", false, "do not ask before each; with --fix")
	return command
}

// mending is the command line of doctor.
type mending struct {
	*tool
	fix, yes bool
}

// result is a finding and what has become of it.
type result struct {
	doctor.Finding
	Result string `json:"result"`
	Error  string `json:"error,omitempty"`
}

// What has become of a finding.
const (
	found    = "found"
	mended   = "mended"
	declined = "declined"
	failed   = "failed"
	note     = "note"
)

func (d *mending) run(command *cobra.Command, l looking) error {
	switch {
	case d.yes && !d.fix:
		return fmt.Errorf("%w: --yes is for --fix", volume.ErrInvalid)
	case d.fix && !d.yes && l.out.isData():
		return fmt.Errorf("%w: --fix asks, which a program cannot answer; add --yes, or leave -o out", volume.ErrInvalid)
	}
	results, err := d.all(command, l)
	if err != nil {
		return err
	}
	remain := 0
	for _, one := range results {
		if one.Result != mended && one.Result != note {
			remain++
		}
	}
	if l.out.isData() {
		err = l.out.data(append([]result{}, results...)) // None is [], not null.
	} else {
		err = l.out.findings(results, d.fix, remain)
	}
	if err == nil && remain > 0 {
		return &toldError{errFindings}
	}
	return err
}

// rounds is how often it is looked again: what is mended may have hidden another.
const rounds = 4

// all finds and mends, until nothing new is mended.
func (d *mending) all(command *cobra.Command, l looking) ([]result, error) {
	var results []result
	seen := map[string]bool{}
	input := bufio.NewReader(command.InOrStdin())
	for range rounds {
		findings, err := d.findings(command.Context(), l)
		if err != nil {
			return nil, err
		}
		again := false
		for _, finding := range findings {
			if seen[finding.ID] {
				continue
			}
			seen[finding.ID] = true
			one, err := d.treat(command, l, finding, input)
			if err != nil {
				return nil, err
			}
			results = append(results, one)
			again = again || one.Result == mended
		}
		if !again {
			break
		}
	}
	return results, nil
}

// findings looks, for no longer than --timeout says: whoever is asked may take longer.
func (d *mending) findings(ctx context.Context, l looking) ([]doctor.Finding, error) {
	ctx, cancel := d.limit(ctx)
	defer cancel()
	return l.Findings(ctx)
}

// treat mends a finding, if it can be and is to be.
func (d *mending) treat(command *cobra.Command, l looking, finding doctor.Finding, input *bufio.Reader) (result, error) {
	if finding.IsNote() {
		return result{Finding: finding, Result: note}, nil
	}
	if !d.fix || finding.Fix == "" {
		return result{Finding: finding, Result: found}, nil
	}
	if !d.yes {
		question := fmt.Sprintf("%s: %s\n  Mend it: %s? [y/N] ", finding.Check, oneLine(finding.Message), finding.Fix)
		answer, err := prompt(command.Context(), command.ErrOrStderr(), input, question)
		if err != nil {
			return result{}, err
		}
		if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
			return result{Finding: finding, Result: declined}, nil
		}
	}
	ctx, cancel := d.limit(command.Context())
	defer cancel()
	_, err := l.Fix(ctx, finding.ID)
	if errors.Is(err, volume.ErrNotFound) {
		err = nil // It has gone by itself, or with another.
	}
	if err != nil {
		return result{Finding: finding, Result: failed, Error: err.Error()}, nil
	}
	return result{Finding: finding, Result: mended}, nil
}

// prompt asks, and returns the line that is typed; none where there is nobody to type.
func prompt(ctx context.Context, w io.Writer, input *bufio.Reader, question string) (string, error) {
	if _, err := fmt.Fprint(w, question); err != nil {
		return "", err
	}
	typed := make(chan string, 1)
	go func() {
		line, err := input.ReadString('\n')
		if err != nil && line == "" {
			fmt.Fprintln(w) //nolint:errcheck,gosec // There is nowhere else to say it.
		}
		typed <- strings.TrimSpace(line)
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(w) //nolint:errcheck,gosec // There is nowhere else to say it.
		return "", fmt.Errorf("wait for an answer: %w", ctx.Err())
	case line := <-typed:
		return line, nil
	}
}

// findings prints findings and what has become of them.
func (o output) findings(results []result, fix bool, remain int) error {
	mendable, notes := 0, 0
	for i, one := range results {
		if i > 0 {
			if _, err := fmt.Fprintln(o.w); err != nil {
				return err
			}
		}
		if err := o.finding(one, fix); err != nil {
			return err
		}
		if one.Fix != "" && one.Result == found {
			mendable++
		}
		if one.Result == note {
			notes++
		}
	}
	if len(results) > 0 {
		if _, err := fmt.Fprintln(o.w); err != nil {
			return err
		}
	}
	switch {
	case len(results) == notes:
		return o.text(green, "Nothing is left over, and nothing is wrong that could be seen.")
	case remain == 0:
		return o.text(green, "All of it is mended.")
	case mendable > 0:
		return o.text(bold, "%s, of which %d can be mended without a loss: rawblockctl doctor --fix", plural(remain, "finding"), mendable)
	default:
		return o.text(bold, "%s left, for you to decide.", plural(remain, "finding"))
	}
}

func plural(count int, what string) string {
	if count == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", count, what)
}

func (o output) finding(one result, fix bool) error {
	heading := string(one.Check) + "  " + one.Subject
	c := yellow
	if one.Result == mended {
		heading, c = heading+"  MENDED", green
	}
	if err := o.text(c, "%s", heading); err != nil {
		return err
	}
	lines := [][2]string{{"what", one.Message}, {"means", one.Meaning}, {"do", one.Remedy}}
	switch {
	case one.Result == mended:
		lines = [][2]string{{"what", one.Message}, {"done", one.Fix}}
	case one.Error != "":
		lines = append(lines, [2]string{"not mended", one.Error})
	case one.Fix != "" && !fix:
		lines = append(lines, [2]string{"--fix", one.Fix})
	}
	for _, line := range lines {
		if _, err := fmt.Fprintf(o.w, "  %-6s %s\n", line[0]+":", oneLine(line[1])); err != nil {
			return err
		}
	}
	return nil
}
