//go:build linux

package nicdial

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
)

// Resolver returns a resolver whose queries leave by the NIC. It asks the name
// servers of /etc/resolv.conf (or [WithNameServers]). One on an address of this
// host, its loopback or another, is a program that would pass the query on by
// the host's own routing; in its place those servers are asked that
// systemd-resolved asks, and where there are none that is an error.
func (n *NIC) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: n.dialServer}
}

// upstream is where systemd-resolved writes which servers it asks.
const upstream = "/run/systemd/resolve/resolv.conf"

// dialServer connects to a name server; the address is one of resolv.conf.
func (n *NIC) dialServer(ctx context.Context, network, address string) (net.Conn, error) {
	servers := n.servers
	if len(servers) == 0 {
		asked, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, fmt.Errorf("nicdial: reading the name server's address: %w", err)
		}
		servers = []netip.AddrPort{asked}
		here, err := local(asked.Addr())
		if err != nil {
			return nil, err
		}
		if here {
			if servers, err = realServers(upstream); err != nil {
				return nil, err
			}
			if len(servers) == 0 {
				return nil, fmt.Errorf("nicdial: the name server %v is on this host, and would ask by the host's own routing: name another one with WithNameServers", asked)
			}
		}
	}
	server := servers[int(n.turn.Add(1)-1)%len(servers)]
	d := net.Dialer{ControlContext: n.controlDial}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, network, server.String())
}

// realServers reads the name servers of a resolv.conf that are not on this
// host. A file that is not there has none.
func realServers(path string) ([]netip.AddrPort, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nicdial: looking for name servers: %w", err)
	}
	defer f.Close()
	var out []netip.AddrPort
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(fields[1])
		if err != nil {
			continue
		}
		if here, err := local(a); err != nil || !here { // an error comes again when it is asked
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("nicdial: reading %s: %w", path, err)
	}
	return out, nil
}
