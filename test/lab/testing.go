package lab

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tools are the programs that a lab needs on the machine.
var tools = []string{"ip", "nft", "nsenter", "unshare", "go"}

// diagTimeout bounds the collection of diagnostics after a failure.
const diagTimeout = 20 * time.Second

// Start builds a lab for a test and removes it at its end. Short tests skip it. Without root or the
// tools it skips too, unless CI is set: then it fails. After a failure it logs what the host looked like.
func Start(tb testing.TB, cfg Config) *Lab {
	tb.Helper()
	if testing.Short() {
		tb.Skip("the lab is left out of short tests")
	}
	if why := missing(cfg); why != "" {
		if os.Getenv("CI") != "" {
			tb.Fatalf("the lab cannot run here: %s", why)
		}
		tb.Skipf("the lab cannot run here: %s", why)
	}
	if cfg.Log == nil {
		cfg.Log = tb.Logf
	}
	l, err := New(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), diagTimeout)
			defer cancel()
			tb.Log(l.Diagnostics(ctx))
		}
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	return l
}

// asBeforeTime is how long others may have changed the machine for a moment.
const asBeforeTime = 30 * time.Second

// MachineAsBefore fails the test unless the machine comes to be as MachineState described it.
func MachineAsBefore(tb testing.TB, before string) {
	tb.Helper()
	for end := time.Now().Add(asBeforeTime); ; <-time.After(100 * time.Millisecond) {
		after, err := MachineState(tb.Context())
		if err != nil {
			tb.Fatal(err)
		}
		diff := cmp.Diff(before, after)
		if diff == "" {
			return
		}
		if time.Now().After(end) {
			tb.Fatalf("the machine has changed (-before +after):\n%s", diff)
		}
	}
}

// missing says why a lab cannot run here; empty: it can.
func missing(cfg Config) string {
	if os.Geteuid() != 0 {
		return "it needs root"
	}
	need := tools
	if cfg.Engine != "" {
		need = append([]string{"debootstrap"}, need...)
	}
	for _, tool := range need {
		if _, err := exec.LookPath(tool); err != nil {
			return "it needs the program " + tool
		}
	}
	if _, err := cgroupSource(cfg.Unified); err != nil {
		return err.Error()
	}
	return ""
}

// Diagnostics is a report for a failed test: the host's network, the engine's log, and what the sniffers
// and the fabric saw.
func (l *Lab) Diagnostics(ctx context.Context) string {
	var b strings.Builder
	section := func(name, text string) {
		b.WriteString("---- " + name + "\n" + strings.TrimSpace(text) + "\n")
	}
	for _, args := range [][]string{
		{"ip", "rule"},
		{"ip", "route", "show", "table", "all"},
		{"ip", "-6", "rule"},
		{"nft", "list", "ruleset"},
		{"ip", "-br", "addr"},
	} {
		out, err := l.Host.Run(ctx, args[0], args[1:]...)
		if err != nil {
			out += err.Error()
		}
		section("host: "+strings.Join(args, " "), out)
	}
	if l.engine != nil {
		section("dockerd, end of log", l.engine.Tail(40))
	}
	for _, n := range l.nics {
		s := l.sniffers[n.Name]
		lines := []string{}
		for _, f := range s.Foreign() {
			lines = append(lines, f.String())
		}
		if err := s.Err(); err != nil {
			lines = append(lines, err.Error())
		}
		section("foreign packets on "+n.Name, strings.Join(lines, "\n"))
		if d, err := l.Drops(ctx, n.Name); err == nil {
			section("fabric's drops on "+n.Name, d.String())
		}
	}
	lines := []string{}
	for _, s := range l.Site.Seen() {
		lines = append(lines, s.String())
	}
	section("seen by the site", strings.Join(lines, "\n"))
	return b.String()
}
