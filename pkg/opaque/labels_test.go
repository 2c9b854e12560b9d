package opaque

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

// labels.go holds constants only, each with its own text, and none the end of
// another: labels come last in an info string, after data a peer may choose.
func TestLabels(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "labels.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{}
	for _, decl := range file.Decls {
		consts, ok := decl.(*ast.GenDecl)
		if !ok || consts.Tok != token.CONST {
			t.Fatalf("labels.go declares something besides constants: %T", decl)
		}
		for _, spec := range consts.Specs {
			value := spec.(*ast.ValueSpec)
			for i, name := range value.Names {
				text, err := strconv.Unquote(value.Values[i].(*ast.BasicLit).Value)
				if err != nil || text == "" {
					t.Fatalf("%s: %q, %v", name.Name, text, err)
				}
				if other, ok := labels[text]; ok {
					t.Errorf("%s and %s are both %q", name.Name, other, text)
				}
				labels[text] = name.Name
			}
		}
	}
	if len(labels) < 16 {
		t.Errorf("only %d labels found", len(labels))
	}
	for a, nameA := range labels {
		for b, nameB := range labels {
			if a != b && strings.HasSuffix(a, b) {
				t.Errorf("%s ends like %s", nameA, nameB)
			}
		}
	}
}
