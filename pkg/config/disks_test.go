package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/blockdev"
	"github.com/rawblock-csi/rawblock-csi/pkg/config"
)

func TestDisksRefused(t *testing.T) {
	for name, test := range map[string]struct {
		disk string
		want string
	}{
		"unknown key":          {"{match: {transport: nvme}, wipes: zero}", `"wipes" is unknown in disk; its keys are: match, exclude, layout, wipe`},
		"unknown key of match": {"{match: {bus: nvme}}", `"bus" is unknown in match; its keys are: transport, rotational, minSize, maxSize, model, serial, wwid, paths`},
		"unknown key excluded": {"{match: {transport: nvme}, exclude: [{bus: sata}]}", `"bus" is unknown in an entry of exclude; its keys are: transport`},
		"no match":             {"{layout: whole}", "disk has no match; say which disks it may take"},
		"empty match":          {"{match: {}}", "match says nothing of the disks; give it a key with a value"},
		"empty exclusion":      {"{match: {transport: nvme}, exclude: [{}]}", "an entry of exclude says nothing of the disks"},
		"null exclusion":       {"{match: {transport: nvme}, exclude: [~]}", "the list has an entry without a value"},
		"no paths":             {"{match: {transport: nvme, paths: []}}", "paths is empty; name one such as /dev/disk/by-id/nvme-*, or remove the key"},
		"null path":            {"{match: {paths: [~]}}", "the list has an entry without a value"},
		"sizes crossed":        {"{match: {minSize: 2Ti, maxSize: 2T}}", "no disk has match: minSize is larger than maxSize"},
		"sizes crossed below":  {"{match: {transport: nvme}, exclude: [{minSize: 2, maxSize: 1}]}", "no disk has an entry of exclude: minSize"},
		"size in GB":           {"{match: {minSize: 100GB}}", `"100GB" is not a size`},
		"empty model":          {`{match: {transport: nvme, model: ""}}`, `"" is not a pattern`},
		"list as model":        {`{match: {transport: nvme, model: [a]}}`, `a list is not a pattern`},
		"malformed model":      {`{match: {model: "S["}}`, `"S[" is not a pattern; expected text such as`},
		"malformed path":       {`{match: {paths: ["/dev/[a"]}}`, `"/dev/[a" is not a path pattern`},
		"relative path":        {`{match: {paths: ["nvme*"]}}`, `"nvme*" is not a path pattern`},
		"number as serial":     {`{match: {serial: 0012}}`, `0012 is no text in YAML; write it in quotes: "0012"`},
		"date as serial":       {`{match: {serial: 2001-01-01}}`, `2001-01-01 is no text in YAML; write it in quotes`},
		"blank before model":   {`{match: {model: " S"}}`, `" S" is not a pattern`},
		"line break in model":  {`{match: {model: "S\nT"}}`, `"S\nT" is not a pattern`},
		"transport misspelt":   {"{match: {transport: nvem}}", `"nvem" is not known here; expected one of: nvme, sata, sas, scsi, usb, virtio, xen, mmc, iscsi, fc`},
		"rotational in words":  {"{match: {rotational: no}}", `"no" is not a truth value`},
		"unknown layout":       {"{match: {transport: nvme}, layout: lvm}", `"lvm" is not known here; expected one of: partition, whole`},
		"never wiped":          {"{match: {transport: nvme}, wipe: none}", `"none" is not known here; expected one of: discard, zero, secure`},
		"all excluded":         {"{match: {transport: nvme, minSize: 1Ti}, exclude: [{transport: nvme}]}", "exclude has every disk that match has; narrow exclude"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := config.Parse([]byte("pools:\n- name: a\n  disk:\n   " + test.disk + "\n"))
			if err == nil {
				t.Fatalf("got %+v, want an error", got)
			}
			if !strings.HasPrefix(err.Error(), "line 4: "+test.want) {
				t.Errorf("%q does not begin with line 4: %q", err, test.want)
			}
		})
	}
}

// Two pools of which one would take the disks of the other are refused, in either
// order.
func TestDiskPoolsThatOverlap(t *testing.T) {
	for name, test := range map[string]struct {
		one, other string
		overlap    bool
	}{
		"the same match":                                 {"{match: {transport: nvme}}", "{match: {transport: nvme}}", true},
		"the same in another order":                      {`{match: {paths: [/a, /b], minSize: 1Ki}}`, `{match: {minSize: 1024, paths: [/b, /a]}}`, true},
		"the same with other exclusions":                 {"{match: {transport: nvme}, exclude: [{serial: a}]}", "{match: {transport: nvme}, exclude: [{serial: b}]}", true},
		"a part":                                         {"{match: {transport: nvme}}", "{match: {transport: nvme, minSize: 1Ti}}", true},
		"a part by size":                                 {"{match: {minSize: 1Gi, maxSize: 4Ti}}", "{match: {minSize: 1Ti, maxSize: 2Ti}}", true},
		"a part by serial":                               {`{match: {serial: "S4*"}}`, "{match: {serial: S4ABC}}", true},
		"a part by path":                                 {`{match: {paths: ["/dev/disk/by-id/nvme-*"]}}`, "{match: {paths: [/dev/disk/by-id/nvme-1]}}", true},
		"a part by rotation":                             {"{match: {transport: sata}}", "{match: {transport: sata, rotational: false}}", true},
		"a part that is excluded":                        {"{match: {transport: nvme}, exclude: [{minSize: 1Ti}]}", "{match: {transport: nvme, minSize: 1Ti}}", false},
		"a part that is partly excluded":                 {"{match: {transport: nvme}, exclude: [{minSize: 2Ti}]}", "{match: {transport: nvme, minSize: 1Ti}}", true},
		"a part excluded by a wider entry":               {`{match: {transport: nvme}, exclude: [{serial: "S*"}]}`, "{match: {transport: nvme, serial: S1}}", false},
		"other transports":                               {"{match: {transport: nvme}}", "{match: {transport: sata}}", false},
		"other rotation":                                 {"{match: {rotational: true}}", "{match: {rotational: false}}", false},
		"sizes beside each other":                        {"{match: {maxSize: 1Ti}}", "{match: {minSize: 2Ti}}", false},
		"sizes that cross":                               {"{match: {maxSize: 3Ti}}", "{match: {minSize: 2Ti}}", false},
		"other models":                                   {`{match: {model: "SAMSUNG*"}}`, `{match: {model: "INTEL*"}}`, false},
		"a text that a pattern only looks like covering": {`{match: {model: "a?"}}`, `{match: {model: "a*"}}`, false},
		"any text and no text":                           {`{match: {model: "*"}}`, "{match: {transport: nvme}}", false},
		"other paths":                                    {`{match: {paths: [/a, /b]}}`, `{match: {paths: [/b, /c]}}`, false},
		"other facts":                                    {"{match: {transport: nvme}}", `{match: {serial: "S4*"}}`, false},
		"a fact and no such fact":                        {`{match: {paths: [/a]}}`, `{match: {model: "a"}}`, false},
	} {
		for _, order := range [][2]string{{test.one, test.other}, {test.other, test.one}} {
			_, err := config.Parse([]byte("pools:\n- name: a\n  disk: " + order[0] + "\n- name: b\n  disk: " + order[1] + "\n"))
			if !test.overlap && err != nil {
				t.Errorf("%s: %v", name, err)
			}
			const want = `line 4: the disks of pool "b" are those of pool "a" in line 2 as well; exclude them from one, or narrow its match`
			if test.overlap && (err == nil || err.Error() != want) {
				t.Errorf("%s: got %v; want %s", name, err, want)
			}
		}
	}
}

// A transport that no disk can have would choose none, silently.
func TestTransportsAreThoseOfDisks(t *testing.T) {
	_, err := config.Parse([]byte("pools: [{name: a, disk: {match: {transport: '?'}}}]"))
	_, words, _ := strings.Cut(err.Error(), "expected one of: ")
	got := strings.Split(words, ", ")
	slices.Sort(got)
	if diff := cmp.Diff(slices.Sorted(slices.Values(blockdev.Transports())), got); diff != "" {
		t.Errorf("pkg/blockdev knows (-), the configuration takes (+):\n%s", diff)
	}
}
