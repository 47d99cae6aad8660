package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeGo has BuildApp run a script in place of the compiler, in a lab that has
// a folder only.
func fakeGo(t *testing.T, script string) *Lab {
	t.Helper()
	before := built.app
	built.app = nil
	t.Cleanup(func() { built.app = before })
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "go"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return &Lab{dir: t.TempDir()}
}

// TestBuildLeavesNothing: what the compiler writes for a while is in the lab's
// folder, which goes with the lab.
func TestBuildLeavesNothing(t *testing.T) {
	l := fakeGo(t, "echo \"in $GOTMPDIR\"\ntest -d \"$GOTMPDIR\" && echo it is there\nexit 1\n")
	_, err := l.BuildApp(t.Context())
	if err == nil || !strings.Contains(err.Error(), "in "+l.dir+"/") || !strings.Contains(err.Error(), "it is there") {
		t.Errorf("the build says %v, want a folder below %s", err, l.dir)
	}
}

// TestBuildInterrupted: the compiler is interrupted, so that it ends by itself,
// and killed if it does not. BuildApp returns when it is gone.
func TestBuildInterrupted(t *testing.T) {
	for name, tc := range map[string]struct {
		trap string
		want string
	}{
		"it ends":  {"trap 'echo cleared away; exit 1' INT", "cleared away"},
		"it stays": {"trap '' INT", "killed"},
	} {
		t.Run(name, func(t *testing.T) {
			started := filepath.Join(t.TempDir(), "started")
			if err := unix.Mkfifo(started, 0o600); err != nil {
				t.Fatal(err)
			}
			l := fakeGo(t, tc.trap+"\necho $$ >"+started+"\nwhile :; do sleep 0.05; done\n")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			pid := make(chan string, 1)
			go func() {
				said, _ := os.ReadFile(started)
				pid <- strings.TrimSpace(string(said))
				cancel()
			}()
			begun := time.Now()
			_, err := l.BuildApp(ctx)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if took := time.Since(begun); took > buildGrace+time.Minute/2 {
				t.Errorf("it took %v", took)
			}
			if _, err := os.Stat("/proc/" + <-pid); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it still runs: %v", err)
			}
			if built.app != nil {
				t.Error("there is a program")
			}
		})
	}
}
