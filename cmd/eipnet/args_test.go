package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/nsexec"
)

// TestRefusals: a command line that says nothing usable is refused, with what
// is missing or known, and its exit code.
func TestRefusals(t *testing.T) {
	for line, tt := range map[string]struct {
		code int
		says []string
	}{
		"foo":             {1, []string{`unknown command "foo"`}},
		"host foo":        {1, []string{`eipnet host has no command "foo"`, "add, ls, rm"}},
		"completion xx":   {1, []string{`eipnet completion has no command "xx"`, "bash, fish, powershell, zsh"}},
		"host add":        {1, []string{"NAME is missing", "usage: eipnet host add NAME --nic NIC"}},
		"host add a b":    {1, []string{`"b" is one argument too many`, "usage: eipnet host add NAME"}},
		"host rm":         {1, []string{"NAME is missing", "usage: eipnet host rm NAME..."}},
		"rebind":          {1, []string{"CONTAINER is missing", "usage: eipnet rebind CONTAINER {SELECTOR"}},
		"rebind web":      {1, []string{"SELECTOR is missing", "--clear"}},
		"rebind --clear":  {1, []string{"CONTAINER is missing"}},
		"status web":      {1, []string{`"web" is one argument too many`, "usage: eipnet status [flags]"}},
		"exec":            {nsexec.ExitFailed, []string{"COMMAND is missing", "usage: eipnet exec {--nic NIC"}},
		"exec --bogus ls": {nsexec.ExitFailed, []string{"--bogus"}},
	} {
		cmd := root()
		cmd.SetArgs(strings.Fields(line))
		ran, err := cmd.ExecuteC()
		if err == nil {
			t.Errorf("eipnet %s: accepted", line)
			continue
		}
		code, err := failure(ran, err)
		if code != tt.code {
			t.Errorf("eipnet %s: exit code %d, want %d", line, code, tt.code)
		}
		for _, want := range tt.says {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("eipnet %s says %q, want %q", line, err, want)
			}
		}
	}
}

// TestUsageLines: what stands behind exec's COMMAND is the command's.
func TestUsageLines(t *testing.T) {
	for _, cmd := range commands(root()) {
		if line := cmd.UseLine(); strings.Contains(line, "COMMAND") && !strings.HasSuffix(line, "[flags] -- COMMAND [ARG...]") {
			t.Errorf("usage: %s", line)
		}
	}
}

func TestVersion(t *testing.T) {
	for _, arg := range []string{"version", "--version"} {
		var out bytes.Buffer
		cmd := root()
		cmd.SetOut(&out)
		cmd.SetArgs([]string{arg})
		if err := cmd.Execute(); err != nil || out.String() != "eipnet "+version+"\n" {
			t.Errorf("eipnet %s prints %q, %v", arg, out.String(), err)
		}
	}
}
