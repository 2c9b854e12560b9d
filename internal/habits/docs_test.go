package habits

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

// What the router learns from a method is said for every method.
func TestSecurityTableIsWhole(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(page), "## What the router learns from each method")
	if !ok {
		t.Fatal("docs/security.md has no table of methods")
	}
	table, _, _ = strings.Cut(table, "\n#")
	said := map[string]bool{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		for name := range strings.SplitSeq(cells[1], ",") {
			said[strings.TrimSpace(name)] = true
		}
	}
	for _, info := range qpcpb.Methods() {
		if !said[info.Name] {
			t.Errorf("%s is not in the table of docs/security.md: say what the router learns from it", info.Name)
		}
	}
}
