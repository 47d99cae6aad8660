package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

func hostCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "host",
		Short: "Give programs of the host addresses that live on one NIC each",
		Long: `Give programs of the host addresses of their own, each of which lives on one NIC.
What a program sends from such an address leaves by that NIC with that NIC's
address, and the ports that are published lead to it.

The program has to use the address: to listen on it, and to connect from it. One
that only listens on it still connects from the host's default address, by the
host's routing; for such programs there is eipnet exec.

Entries are kept over restarts. They can also be declared, as files in the
folder of serve --host-dir.`,
	}
	cmd.AddCommand(hostAddCommand(), hostListCommand(), hostRemoveCommand())
	return cmd
}

func hostAddCommand() *cobra.Command {
	var socket, nic, address, bridge string
	var publish []string
	cmd := &cobra.Command{
		Use:     "add NAME --nic NIC --address ADDRESS [-p HOSTPORT:PORT]",
		Short:   "Add an address that lives on one NIC",
		Example: `  sudo eipnet host add web --nic eth1 --address 172.29.0.100 -p 8090:8090`,
		Args:    exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			e := model.HostEntry{Name: args[0], Bridge: bridge}
			var err error
			if e.Options, err = model.SelectNIC(nic); err != nil {
				return fmt.Errorf("--nic: %w", err)
			}
			if e.Address, err = netip.ParseAddr(address); err != nil {
				return fmt.Errorf("--address %q: want an IPv4 address that nobody has, as 172.29.0.100", address)
			}
			if e.Publishes, err = model.ParsePublishes(publish); err != nil {
				return fmt.Errorf("-p: %w", err)
			}
			if err := e.Check(); err != nil {
				return err
			}
			return asked(api.NewClient(socket).AddHost(cmd.Context(), e))
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&nic, "nic", "", "the `NIC`, by name, address, EIP (one that serve --eip maps) or MAC address")
	fs.StringVar(&address, "address", "", "an IPv4 `address` that nobody has; programs use it, nobody else sees it")
	fs.StringVar(&bridge, "bridge", "", "`name` of the bridge that gets the address, and is made for it; without it br-NAME")
	fs.StringSliceVarP(&publish, "publish", "p", nil, "publish a port of the address, as `[ADDRESS:]HOSTPORT:PORT[/udp]`; without an address on the NIC's")
	fs.StringVar(&socket, "api-socket", defaultAPISocket, "unix `path` of the daemon's API")
	return cmd
}

func hostRemoveCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Remove addresses that were added; what uses them reaches nothing any more",
		Args:  atLeast("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range args {
				errs = append(errs, asked(api.NewClient(socket).RemoveHost(cmd.Context(), name)))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVar(&socket, "api-socket", defaultAPISocket, "unix `path` of the daemon's API")
	return cmd
}

// asked gives the error of a daemon that does not run its exit code.
func asked(err error) error {
	if errors.Is(err, api.ErrNotRunning) {
		return exitError{exitNotRunning, err}
	}
	return err
}

// hostLine is what host ls --json prints of an entry.
type hostLine struct {
	model.HostEntry
	State    plan.State   `json:"state"`
	NIC      string       `json:"nic,omitempty"`
	LeavesAs []netip.Addr `json:"leaves_as,omitempty"`
	Public   netip.Addr   `json:"public,omitzero"`
	Ports    []string     `json:"ports,omitempty"` // that are published now
	Why      string       `json:"why,omitempty"`
}

func hostListCommand() *cobra.Command {
	var socket string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the addresses",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client := api.NewClient(socket)
			entries, err := client.Hosts(cmd.Context())
			if err != nil {
				return asked(err)
			}
			status, err := client.Status(cmd.Context())
			if err != nil {
				return asked(err)
			}
			lines := hostLines(entries, status)
			if asJSON {
				return printJSON(cmd.OutOrStdout(), lines)
			}
			return printHosts(cmd.OutOrStdout(), lines)
		},
	}
	cmd.Flags().StringVar(&socket, "api-socket", defaultAPISocket, "unix `path` of the daemon's API")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	return cmd
}

func hostLines(entries []model.HostEntry, s api.Status) []hostLine {
	out := make([]hostLine, 0, len(entries))
	for _, e := range entries {
		line := hostLine{HostEntry: e, State: plan.StatePending}
		for _, at := range s.Endpoints {
			if at.ID == e.ID() {
				line.State, line.NIC, line.LeavesAs, line.Public, line.Ports, line.Why = at.State, at.NIC, at.LeavesAs, at.Public, at.Ports, at.Why
			}
		}
		out = append(out, line)
	}
	return out
}

func printHosts(out io.Writer, lines []hostLine) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tBRIDGE\tADDRESS\tSTATE\tNIC\tLEAVES AS\tEIP\tPORTS\tFILE")
	for _, l := range lines {
		fmt.Fprintf(w, "%s\t%s\t%v\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Name, l.Bridge, l.Address, l.State, dash(l.NIC), addrs(l.LeavesAs), addr(l.Public),
			dash(strings.Join(l.Ports, ", ")), dash(l.File))
	}
	return w.Flush()
}
