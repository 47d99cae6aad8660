package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manCommand prints the man page; make install and the packages put it in its place.
func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man",
		Short:  "Print the man page eipnet(8)",
		Args:   exactly(),
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), manPage(cmd.Root()))
			return err
		},
	}
}

// manPage renders the help of all commands as one page, in man(7).
func manPage(root *cobra.Command) string {
	var b strings.Builder
	name := root.Name()
	fmt.Fprintf(&b, ".TH %s 8 \"\" %s\n", strings.ToUpper(name), roff("eipnet "+version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", name, roff(lowerFirst(root.Short)))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n.I COMMAND\n[\\fIFLAGS\\fR]\n", name)
	fmt.Fprintf(&b, ".SH DESCRIPTION\n%s", paragraphs(root.Long))
	b.WriteString(".SH COMMANDS\n")
	for _, cmd := range commands(root) {
		fmt.Fprintf(&b, ".SS %s\n%s", roff(strings.Replace(cmd.UseLine(), " [flags]", "", 1)), paragraphs(longOf(cmd)))
		if cmd.HasExample() {
			fmt.Fprintf(&b, ".PP\n%s", verbatim(cmd.Example))
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" {
				b.WriteString(manFlag(f))
			}
		})
	}
	b.WriteString(`.SH FILES
.TP
.I /etc/default/eipnet
Settings of the systemd units, one EIPNET_... variable a line.
.TP
.I /etc/eipnet/host.d/*.json
Addresses for programs of the host, as "eipnet host add" has them.
.TP
.I /var/lib/eipnet/state.db
Networks, endpoints, and what the host was like. Keep it.
.TP
.I /run/docker/plugins/eipnet.sock
Where Docker finds the driver.
.TP
.I /run/eipnet/eipnet.sock
What the other commands ask.
`)
	return b.String()
}

// commands lists all that a user may give, parents first. What "completion"
// prints for each shell is its own help.
func commands(parent *cobra.Command) (all []*cobra.Command) {
	for _, cmd := range parent.Commands() {
		if !cmd.IsAvailableCommand() || cmd.Name() == "help" || parent.Name() == "completion" {
			continue
		}
		all = append(append(all, cmd), commands(cmd)...)
	}
	return all
}

// manFlag renders one flag as a tagged paragraph.
func manFlag(f *pflag.Flag) string {
	placeholder, usage := pflag.UnquoteUsage(f)
	tag := "\\fB" + roff("--"+f.Name) + "\\fR"
	if f.Shorthand != "" {
		tag = "\\fB" + roff("-"+f.Shorthand) + "\\fR, " + tag
	}
	if placeholder != "" {
		tag += " \\fI" + roff(placeholder) + "\\fR"
	}
	if def := defaultOf(f); def != "" {
		usage += " (default " + def + ")"
	}
	return fmt.Sprintf(".TP\n%s\n%s\n", tag, roff(usage))
}

// defaultOf is what a flag is where nobody says anything; empty for nothing.
func defaultOf(f *pflag.Flag) string {
	if f.DefValue == "false" {
		return ""
	}
	return strings.Trim(f.DefValue, "[]")
}

// longOf is a command's long help, or its short one as a sentence.
func longOf(cmd *cobra.Command) string {
	if cmd.Long != "" {
		return cmd.Long
	}
	return cmd.Short + "."
}

// paragraphs renders help text; what is indented in it stays as it is.
func paragraphs(text string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		b.WriteString(".PP\n")
		if strings.HasPrefix(part, " ") {
			b.WriteString(verbatim(part))
			continue
		}
		b.WriteString(roff(part) + "\n")
	}
	return b.String()
}

func verbatim(text string) string { return ".nf\n" + roff(strings.Trim(text, "\n")) + "\n.fi\n" }

// roff escapes text for a man page: a backslash, a hyphen that is to stay one,
// and what would be a request at the start of a line.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }
