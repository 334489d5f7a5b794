package volume

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"testing"
)

// Each constant is in the list, under its own name.
func TestReasons(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "health.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []Reason
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "Reason" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil || text != spec.Names[0].Name {
			t.Errorf("%s is %q", spec.Names[0].Name, text)
		}
		declared = append(declared, Reason(text))
		return true
	})
	if !slices.Equal(declared, Reasons()) {
		t.Errorf("declared are %v\nlisted are %v", declared, Reasons())
	}
	camelCase := regexp.MustCompile(`^([A-Z][A-Za-z]+)+$`) // CSI specification 1.13, VolumeHealthEntry.
	for _, reason := range Reasons() {
		if !camelCase.MatchString(string(reason)) {
			t.Errorf("%s is not in CamelCase", reason)
		}
	}
}

func TestMergeConditions(t *testing.T) {
	got := MergeConditions([]Condition{
		{Degraded, IOErrors, "a"},
		{Inaccessible, DeviceGone, "b"},
		{Degraded, IOErrors, "c"},
		{Degraded, IOErrors, "c"},
		{Degraded, DeviceGone, "d"},
		{DataLoss, SizeShrank, "e"},
	})
	want := []Condition{
		{DataLoss, SizeShrank, "e"},
		{Inaccessible, DeviceGone, "b"},
		{Degraded, IOErrors, "a; c"},
		{Degraded, DeviceGone, "d"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}
