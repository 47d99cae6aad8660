package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBuildLeavesNothing: what the compiler writes for a while is in the lab's
// folder, which goes when the build is interrupted, too.
func TestBuildLeavesNothing(t *testing.T) {
	before := built.app
	built.app = nil
	t.Cleanup(func() { built.app = before })
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "go"), []byte("#!/bin/sh\necho \"in $GOTMPDIR\"\ntest -d \"$GOTMPDIR\" && echo it is there\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	l := &Lab{dir: t.TempDir()}
	_, err := l.BuildApp(t.Context())
	if err == nil || !strings.Contains(err.Error(), "in "+l.dir+"/") || !strings.Contains(err.Error(), "it is there") {
		t.Errorf("the build says %v, want a folder below %s", err, l.dir)
	}
}
