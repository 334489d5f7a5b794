package lvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Group is a volume group.
type Group struct {
	Name, UUID string
	// ExtentSize is the size of an extent, Size that of all extents of all its
	// disks, Free that of those which can be had now, in bytes.
	ExtentSize, Size, Free uint64
	// Missing are the UUIDs of disks (physical volumes) that are not there. LVM
	// changes nothing then.
	Missing []string
	// Disks are the nodes of those that are there.
	Disks []string
	// Exported and ReadOnly say that the host is not to use, or not to change it.
	Exported, ReadOnly bool
	// Volumes are its logical volumes, without those that are parts of others.
	Volumes []Volume
}

// Volume is a logical volume.
type Volume struct {
	Name, UUID string
	// Size is its size in bytes.
	Size uint64
	Tags []string
	// Pool is the name of its thin pool; empty: it is not of one.
	Pool string
	// Partial says that a part of it is on a disk that is not there.
	Partial bool
	// Extents are the ranges of physical extents that it has, where they are those of
	// disks.
	Extents []string
	// Thin is what it is as a thin pool; nil: it is none.
	Thin *ThinPool
}

// ThinPool is what is known of a thin pool.
type ThinPool struct {
	// ChunkSize is the unit in which its space is given to volumes, MetadataSize the
	// size of its metadata, in bytes.
	ChunkSize, MetadataSize uint64
	// Zero says that a chunk is zeroed when it is given to a volume.
	Zero bool
	// ErrorWhenFull says that a write that needs space fails when there is none,
	// instead of waiting for it.
	ErrorWhenFull bool
	// Active says that it has a device. Only then is known what follows.
	Active bool
	// Data and Metadata are how much of them is used, in percent.
	Data, Metadata float64
	// Health is empty, failed, out_of_data or metadata_read_only (lvs(8)).
	Health string
	// NeedsCheck says that its metadata has to be repaired (lvmthin(7)).
	NeedsCheck bool
}

// The fields of a report (lvs -o help). They are those of lvm 2.02.175, of 2017, and
// later.
const (
	groupFields   = "vg_name,vg_uuid,vg_size,vg_extent_size,vg_exported,vg_permissions"
	diskFields    = "pv_name,pv_uuid,pv_free,pv_missing,pv_allocatable"
	volumeFields  = "lv_name,lv_uuid,lv_size,lv_tags,pool_lv,lv_layout,lv_metadata_size,lv_when_full,data_percent,metadata_percent,lv_health_status,lv_check_needed"
	segmentFields = "lv_uuid,chunk_size,zero,seg_pe_ranges"
	// settings are those of a host's lvm.conf that would change the form of a report.
	settings = `report{compact_output=0 compact_output_cols="" list_item_separator=","} log{report_command_log=0}`
)

// Report returns what is known of a volume group. Errors: volume.ErrNotFound where none of
// the devices has one of the name; ErrTwice.
func (l *LVM) Report(ctx context.Context, group string) (Group, error) {
	if err := CheckName(group); err != nil {
		return Group{}, err
	}
	text, err := l.run(ctx, settings, "fullreport", "--reportformat", "json", "--units", "b", "--nosuffix", "--binary",
		"--configreport", "vg", "--options", groupFields, "--configreport", "pv", "--options", diskFields,
		"--configreport", "lv", "--options", volumeFields, "--configreport", "seg", "--options", segmentFields,
		"--configreport", "pvseg", "--select", `pv_name=""`, group)
	var failed *Error
	if errors.As(err, &failed) && failed.Code == CodeFailed {
		return Group{}, l.explain(ctx, group, err)
	}
	if errors.Is(err, errNoDevice) {
		return Group{}, noGroup(group)
	}
	if err != nil {
		return Group{}, err
	}
	return parseReport(text)
}

// ErrTwice says that several volume groups have one name.
var ErrTwice = errors.New("several volume groups have the name")

// explain tells a volume group that is not there, or that is there twice, from one that
// cannot be reported.
func (l *LVM) explain(ctx context.Context, group string, failed error) error {
	text, err := l.run(ctx, settings, "vgs", "--reportformat", "json", "--options", "vg_name,vg_uuid")
	if err != nil {
		return errors.Join(failed, err)
	}
	sections, err := parseSections(text)
	if err != nil {
		return errors.Join(failed, err)
	}
	found := 0
	for _, row := range sections.Groups {
		if row["vg_name"] == group {
			found++
		}
	}
	switch found {
	case 0:
		return noGroup(group)
	case 1:
		return failed
	default:
		return fmt.Errorf("%w %s: %w", ErrTwice, group, failed)
	}
}

func noGroup(group string) error {
	return fmt.Errorf("%w: this node has no volume group %s; attach its disks, or make it with vgcreate", volume.ErrNotFound, group)
}

// row is an object of a report: all values are text.
type row map[string]string

// sections are the rows of a report by their kind.
type sections struct {
	Groups   []row `json:"vg"`
	Disks    []row `json:"pv"`
	Volumes  []row `json:"lv"`
	Segments []row `json:"seg"`
}

// parseSections reads a report (lvmreport(7), --reportformat json).
func parseSections(text []byte) (sections, error) {
	var report struct {
		Report []sections `json:"report"`
	}
	if err := json.Unmarshal(text, &report); err != nil {
		return sections{}, fmt.Errorf("report of lvm: %w", err)
	}
	if len(report.Report) != 1 {
		return sections{}, fmt.Errorf("report of lvm has %d parts, want one", len(report.Report))
	}
	return report.Report[0], nil
}

func parseReport(text []byte) (Group, error) {
	found, err := parseSections(text)
	if err != nil {
		return Group{}, err
	}
	if len(found.Groups) != 1 {
		return Group{}, fmt.Errorf("report of lvm has %d volume groups, want one", len(found.Groups))
	}
	read := reader{row: found.Groups[0]}
	group := Group{
		Name: read.text("vg_name"), UUID: read.uuid("vg_uuid"), Size: read.number("vg_size"), ExtentSize: read.number("vg_extent_size"),
		Exported: read.flag("vg_exported"), ReadOnly: read.text("vg_permissions") != "writeable",
	}
	if group.ExtentSize == 0 {
		read.fail("vg_extent_size", "0")
	}
	for _, read.row = range found.Disks {
		if read.flag("pv_missing") {
			group.Missing = append(group.Missing, read.text("pv_uuid"))
			continue
		}
		if name := read.row["pv_name"]; name != "" {
			group.Disks = append(group.Disks, name)
		}
		if read.flag("pv_allocatable") {
			group.Free += read.number("pv_free")
		}
	}
	segments := map[string][]row{}
	for _, read.row = range found.Segments {
		uuid := read.uuid("lv_uuid")
		segments[uuid] = append(segments[uuid], read.row)
	}
	for _, read.row = range found.Volumes {
		group.Volumes = append(group.Volumes, read.volume(segments))
	}
	if read.err != nil {
		return Group{}, fmt.Errorf("report of lvm on volume group %q: %w", group.Name, read.err)
	}
	return group, nil
}

// reader reads the fields of a row and keeps the first error.
type reader struct {
	row row
	err error
}

func (r *reader) fail(field, value string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s is %q", field, value)
	}
}

func (r *reader) text(field string) string {
	value, given := r.row[field]
	if !given && r.err == nil {
		r.err = fmt.Errorf("%s is missing", field)
	}
	return value
}

func (r *reader) uuid(field string) string {
	value := r.text(field)
	if !validUUID.MatchString(value) {
		r.fail(field, value)
	}
	return value
}

func (r *reader) number(field string) uint64 {
	value := r.text(field)
	number, err := strconv.ParseUint(value, 10, 63)
	if err != nil {
		r.fail(field, value)
	}
	return number
}

// flag reads a field with --binary: 1 or 0, and -1 for what is not known or does not
// apply.
func (r *reader) flag(field string) bool {
	value := r.text(field)
	if value != "0" && value != "1" && value != "-1" {
		r.fail(field, value)
	}
	return value == "1"
}

// percent reads a field that is empty where there is no device.
func (r *reader) percent(field string) float64 {
	value := r.text(field)
	if value == "" {
		return 0
	}
	percent, err := strconv.ParseFloat(value, 64)
	if err != nil || !(percent >= 0 && percent <= 100) { // No NaN either.
		r.fail(field, value)
	}
	return percent
}

// list reads the items of a field.
func (r *reader) list(field string) []string {
	return strings.FieldsFunc(r.text(field), func(c rune) bool { return c == ',' || c == ' ' })
}

func (r *reader) volume(segments map[string][]row) Volume {
	v := Volume{
		Name: r.text("lv_name"), UUID: r.uuid("lv_uuid"), Size: r.number("lv_size"), Tags: r.list("lv_tags"), Pool: r.text("pool_lv"),
		Partial: r.text("lv_health_status") == "partial",
	}
	layout := "," + strings.Join(r.list("lv_layout"), ",") + ","
	if strings.Contains(layout, ",thin,") && strings.Contains(layout, ",pool,") {
		v.Thin = &ThinPool{
			MetadataSize: r.number("lv_metadata_size"), ErrorWhenFull: r.text("lv_when_full") == "error",
			Active: r.text("data_percent") != "", Data: r.percent("data_percent"), Metadata: r.percent("metadata_percent"),
			Health: r.text("lv_health_status"), NeedsCheck: r.flag("lv_check_needed"),
		}
	}
	own := r.row
	for _, r.row = range segments[v.UUID] {
		v.Extents = append(v.Extents, strings.Fields(r.text("seg_pe_ranges"))...)
		if v.Thin != nil {
			v.Thin.ChunkSize, v.Thin.Zero = r.number("chunk_size"), r.flag("zero")
		}
	}
	r.row = own
	if v.Thin != nil && v.Thin.ChunkSize == 0 {
		r.fail("chunk_size of "+v.Name, "0")
	}
	return v
}
