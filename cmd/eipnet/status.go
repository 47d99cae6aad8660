package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/model"
)

const defaultAPISocket = "/run/eipnet/eipnet.sock"

func statusCommand() *cobra.Command {
	var socket string
	var asJSON, ready bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show containers, their NICs, and what is wrong",
		Long: `Show every container on an eipnet network and, on Docker's own ones, those
that something was said about; programs of "eipnet exec" and addresses of
"eipnet host", too: the NIC each is pinned to, the address it leaves with, and
its published ports ("docker ps" shows none for networks of a plugin). Then the
host's NICs, and a list of problems, each with its code in docs/problems.md.

STATE is pinned, unpinned, or held: pending (not decided yet, dropped silently)
or blocked (cannot be as asked for, refused). These words and those of the
counters are explained in docs/problems.md, "Words of eipnet status".

Exit codes: 0 all is well, 1 it failed, 2 there are problems, 3 the daemon is not running.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := api.NewClient(socket).Status(cmd.Context())
			if errors.Is(err, api.ErrNotRunning) {
				return exitError{exitNotRunning, err}
			}
			if err != nil {
				return err
			}
			if ready {
				if s.Docker == "" {
					return errors.New("the daemon runs, and does not see Docker yet")
				}
				return nil
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), s)
			} else {
				err = printStatus(cmd.OutOrStdout(), s)
			}
			if err == nil && len(s.Problems) > 0 {
				return exitError{code: exitProblems}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&socket, "api-socket", defaultAPISocket, "unix `path` of the daemon's API")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	cmd.Flags().BoolVar(&ready, "ready", false, "print nothing but errors; the exit code says whether the daemon runs and sees Docker, whatever problems there are")
	return cmd
}

// printJSON prints what --json asks for. It is for no browser, so that -> stays as it is.
func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func printStatus(out io.Writer, s api.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "CONTAINER\tADDRESS\tSTATE\tNIC\tLEAVES AS\tEIP\tPORTS")
	for _, e := range s.Endpoints {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Container, addrs(e.Addresses), e.State, nicOf(e), addrs(e.LeavesAs),
			addr(e.Public), dash(strings.Join(e.Ports, ", ")))
	}
	fmt.Fprintln(w, "\nNIC\tADDRESS\tEIP\tGATEWAY\tSTATE")
	for _, n := range s.NICs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", n.Name, prefixes(n.Addresses), addrs(n.Public), addr(n.Gateway), nicState(n))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	names := make([]string, 0, len(s.Counters))
	for name, c := range s.Counters {
		if c.Packets > 0 {
			names = append(names, fmt.Sprintf("%s %d", name, c.Packets))
		}
	}
	slices.Sort(names)
	if len(names) > 0 {
		fmt.Fprintf(out, "\n# Packets that were refused or dropped: %s\n", strings.Join(names, ", "))
	}
	if len(s.Except) > 0 {
		fmt.Fprintf(out, "# Destinations that follow the host's routing: %s\n", prefixes(s.Except))
	}
	for _, e := range s.Endpoints {
		if len(e.Except) > 0 {
			fmt.Fprintf(out, "# Destinations of %s (%s) that do, too: %s\n", e.Container, addrs(e.Addresses), prefixes(e.Except))
		}
	}
	for _, e := range s.Endpoints {
		if e.NotGateway {
			fmt.Fprintf(out, "# Ports of %s are not published for %s: another of its networks is its gateway (--gw-priority, or the first by name)\n", e.Container, addrs(e.Addresses))
		}
	}
	for _, p := range s.Problems {
		mark := "!"
		if p.Severity == model.Warning {
			mark = "~"
		}
		if _, err := fmt.Fprintf(out, "%s %v [%s]\n", mark, p, p.Code); err != nil {
			return err
		}
	}
	return nil
}

// nicOf is the NIC, with a word where it is not the one that was asked for, or
// not by a label or option.
func nicOf(e api.Endpoint) string {
	var words []string
	if _, asked, failedOver := strings.Cut(e.InsteadOf, "="); failedOver {
		words = append(words, "for "+asked)
	}
	if e.From == model.FromRebind {
		words = append(words, "by rebind")
	}
	if len(words) == 0 {
		return dash(e.NIC)
	}
	return dash(e.NIC) + " (" + strings.Join(words, ", ") + ")"
}

func nicState(n api.NIC) string {
	var s []string
	switch {
	case !n.Up:
		s = append(s, "down")
	case n.Health != "":
		s = append(s, n.Health)
	}
	if n.Primary {
		s = append(s, "primary")
	}
	if n.Managed {
		s = append(s, fmt.Sprintf("managed (mark %s, table %d)", n.Mark, n.Table))
	} else {
		s = append(s, "not managed")
	}
	return strings.Join(s, ", ")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func addr(a netip.Addr) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func addrs(as []netip.Addr) string {
	s := make([]string, len(as))
	for i, a := range as {
		s[i] = a.String()
	}
	return dash(strings.Join(s, ", "))
}

func prefixes(ps []netip.Prefix) string {
	s := make([]string, len(ps))
	for i, p := range ps {
		s[i] = p.String()
	}
	return dash(strings.Join(s, ", "))
}
