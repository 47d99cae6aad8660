package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

func rebindCommand() *cobra.Command {
	var socket string
	var asJSON, clearIt bool
	cmd := &cobra.Command{
		Use:   "rebind CONTAINER {SELECTOR [eip.KEY=VALUE...] | --clear}",
		Short: "Move a running container to another NIC",
		Long: `Move a running container to another NIC, at once. SELECTOR is what a label
would say (eip.nic=eth2, eip.ip=..., eip.public=..., eip.mac=...), or just the
name of a NIC; eip.fallback=, eip.except= and eip.ip6= may stand beside it.

It overrules labels and options, within what the container's networks allow
(eip.allow, eip.lock). Published ports without a host address move along. The
container's open connections are forgotten, nobody else's. It is remembered
over restarts of everything until the container is removed; --clear undoes it.`,
		Example: `  eipnet rebind web eth2
  eipnet rebind web eip.public=119.26.38.75 eip.fallback=hold
  eipnet rebind web --clear`,
		Args: func(cmd *cobra.Command, args []string) error {
			if clearIt {
				return exactly("CONTAINER")(cmd, args)
			}
			return atLeast("CONTAINER", "SELECTOR")(cmd, args)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			s, err := api.NewClient(socket).Status(cmd.Context())
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return complete(s, args), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ask := api.Rebind{Container: args[0]}
			if !clearIt {
				var err error
				if ask.Options, err = model.ParseRebind(args[1:]); err != nil {
					return err
				}
			}
			moved, err := api.NewClient(socket).Rebind(cmd.Context(), ask)
			switch {
			case errors.Is(err, api.ErrNotRunning):
				return exitError{exitNotRunning, err}
			case err != nil:
				return err
			case asJSON:
				return printJSON(cmd.OutOrStdout(), moved)
			}
			return printRebound(cmd.OutOrStdout(), moved)
		},
	}
	cmd.Flags().StringVar(&socket, "api-socket", defaultAPISocket, "unix `path` of the daemon's API")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was and what is as JSON")
	cmd.Flags().BoolVar(&clearIt, "clear", false, "undo: labels and options count again")
	return cmd
}

// complete lists containers, then the host's NICs.
func complete(s api.Status, args []string) []string {
	var out []string
	if len(args) == 0 {
		for _, e := range s.Endpoints {
			out = append(out, e.Container)
		}
	} else {
		for _, n := range s.NICs {
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// printRebound prints a line for the container: all its endpoints go one way.
func printRebound(out io.Writer, moved api.Rebound) error {
	var lines []string
	for i, w := range moved.After {
		before := "new"
		if i < len(moved.Before) {
			before = way(moved.Before[i])
		}
		line := fmt.Sprintf("%s: %s -> %s\n", moved.Container, before, way(w))
		if before == way(w) {
			line = fmt.Sprintf("%s: %s, as before\n", moved.Container, before)
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 { // --clear of a stopped one
		lines = append(lines, moved.Container+": cleared\n")
	}
	_, err := io.WriteString(out, strings.Join(slices.Compact(lines), ""))
	return err
}

func way(w api.Way) string {
	switch {
	case w.State == plan.StatePinned && w.Public.IsValid():
		return fmt.Sprintf("%s (%s, EIP %v)", w.NIC, addrs(w.LeavesAs), w.Public)
	case w.State == plan.StatePinned:
		return fmt.Sprintf("%s (%s)", w.NIC, addrs(w.LeavesAs))
	case w.Why != "":
		return fmt.Sprintf("%s (%s)", w.State, w.Why)
	}
	return string(w.State)
}
