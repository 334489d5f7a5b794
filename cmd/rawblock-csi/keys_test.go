package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/test/rig"
)

// keysOfSource returns the keys of all calls of the logger in the plugin's packages, and
// those that every line has.
func keysOfSource(t *testing.T) map[string]bool {
	t.Helper()
	keys := map[string]bool{"time": true, "level": true, "msg": true, "err": true}
	files := token.NewFileSet()
	for _, root := range []string{"../../pkg", "."} {
		rig.Must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(files, path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(node ast.Node) bool {
				if call, ok := node.(*ast.CallExpr); ok {
					addKeys(keys, call)
				}
				return true
			})
			return nil
		}))
	}
	return keys
}

// addKeys adds the keys of a call, where it is one of a logger: arguments in pairs, of
// which the first is a literal.
func addKeys(keys map[string]bool, call *ast.CallExpr) {
	function, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return
	}
	// How many arguments stand before the pairs.
	first, ok := map[string]int{"Info": 1, "Error": 2, "WithValues": 0}[function.Sel.Name]
	if !ok || len(call.Args) < first {
		return
	}
	for i := first; i+1 < len(call.Args); i += 2 {
		if literal, ok := call.Args[i].(*ast.BasicLit); ok && literal.Kind == token.STRING {
			if key, err := strconv.Unquote(literal.Value); err == nil {
				keys[key] = true
			}
		}
	}
}
