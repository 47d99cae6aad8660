package snat

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCountersAreExplained: docs/problems.md has a line for each counter that status shows.
func TestCountersAreExplained(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "problems.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(counterNames(), CounterSpoofed) {
		if !strings.Contains(string(text), "\n| `"+name+"` |") {
			t.Errorf("docs/problems.md does not explain %q", name)
		}
	}
}
