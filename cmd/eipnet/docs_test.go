package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/eipnet/eipnet/internal/plan"
)

var update = flag.Bool("update", false, "rewrite the flag tables of docs/configuration.md")

var flagTable = regexp.MustCompile(`(?s)<!-- flags: (\S+) -->\n.*?<!-- end -->\n`)

// TestConfigurationPage: the tables of flags in docs/configuration.md are those
// of the commands. With -update it writes them.
func TestConfigurationPage(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "configuration.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	shown := make(map[string]bool)
	want := flagTable.ReplaceAllStringFunc(page, func(block string) string {
		name := flagTable.FindStringSubmatch(block)[1]
		cmd, _, err := root().Find([]string{name})
		if err != nil {
			t.Errorf("the page has a table for a command that is not there: %v", err)
			return block
		}
		shown[name] = true
		return fmt.Sprintf("<!-- flags: %s -->\n%s<!-- end -->\n", name, table(cmd))
	})
	for _, cmd := range root().Commands() {
		if cmd.HasAvailableLocalFlags() && !shown[cmd.Name()] {
			t.Errorf("docs/configuration.md has no table for %q: add <!-- flags: %s --> and <!-- end -->", cmd.CommandPath(), cmd.Name())
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(strings.Split(page, "\n"), strings.Split(want, "\n")); diff != "" {
		t.Errorf("docs/configuration.md differs from the flags; go test ./cmd/eipnet -update writes them (-page +flags):\n%s", diff)
	}
}

// TestReadmesShowWhatIsThere: every subcommand and flag that the READMEs name exists.
func TestReadmesShowWhatIsThere(t *testing.T) {
	invocation := regexp.MustCompile("(?:`|sudo |\\$ )eipnet ([a-z]+)((?: --?[a-z-]+)*)")
	for _, name := range []string{"README.md", "README.zh-CN.md"} {
		text, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range invocation.FindAllStringSubmatch(string(text), -1) {
			cmd, _, err := root().Find([]string{m[1]})
			if err != nil || cmd.Name() != m[1] {
				t.Errorf("%s: eipnet has no command %q", name, m[1])
				continue
			}
			for f := range strings.FieldsSeq(m[2]) {
				if cmd.Flags().Lookup(strings.TrimLeft(f, "-")) == nil {
					t.Errorf("%s: eipnet %s has no flag %s", name, m[1], f)
				}
			}
		}
	}
}

// TestWordsOfStatus: docs/problems.md explains each state; snat has the counters' test.
func TestWordsOfStatus(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "problems.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []plan.State{plan.StatePinned, plan.StateUnpinned, plan.StatePending, plan.StateBlocked, plan.StateReleased} {
		if !strings.Contains(string(text), "\n| `"+string(s)+"` |") {
			t.Errorf("docs/problems.md does not explain %q", s)
		}
	}
}

// table renders a command's flags in Markdown.
func table(cmd *cobra.Command) string {
	var b strings.Builder
	b.WriteString("| Flag | Environment | Default | |\n|---|---|---|---|\n")
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		placeholder, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if placeholder != "" {
			name += " " + placeholder
		}
		def := "–"
		if d := defaultOf(f); d != "" {
			def = "`" + d + "`"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", strings.ReplaceAll(name, "|", `\|`), envName(f.Name), def, strings.ReplaceAll(usage, "|", `\|`))
	})
	return b.String()
}

// TestManPage: eipnet(8) has every command and flag that the help has, and
// nothing of their texts is taken for a request of man's.
func TestManPage(t *testing.T) {
	page := manPage(root())
	for _, cmd := range commands(root()) {
		if !strings.Contains(page, ".SS "+roff(cmd.CommandPath())) {
			t.Errorf("no section for %q", cmd.CommandPath())
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.Contains(page, roff("--"+f.Name)+`\fR`) {
				t.Errorf("%s: no flag --%s", cmd.Name(), f.Name)
			}
		})
	}
	request := regexp.MustCompile(`^(\.(TH|SH|SS|PP|TP|B|I|nf|fi)\b|[^.'])`)
	for line := range strings.Lines(page) {
		if line != "\n" && !request.MatchString(line) {
			t.Errorf("man takes this for a request: %q", line)
		}
	}
	if got, want := roff(".x -y\n'z \\w"), `\&.x \-y`+"\n"+`\&'z \ew`; got != want {
		t.Errorf("roff gives %q, want %q", got, want)
	}
}
