package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// TestTwoNetworks: a pin belongs to the container. By whichever of its networks
// it leaves, driver or stock, and whichever carries its default route, it leaves
// by its NIC; and what it has begun goes on when the default route moves.
func TestTwoNetworks(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	// As long as it runs, eth1 is managed, and the host answers by eth1 what comes
	// there for a container that is gone.
	r.docker("run", "-d", "--name", "keeper", "--label", "eip.nic=eth1", lab.Image)
	for i, tc := range []struct{ first, other, name string }{
		{"eipnet", "strict", "a_backend"},
		{"eipnet", "strict", "z_backend"},
		{"strict", "strict", "a_backend"},
		{"strict", "strict", "z_backend"},
		{"stock", "stock", "a_backend"},
		{"stock", "stock", "z_backend"},
		{"eipnet", "eipnet", "a_backend"},
	} {
		t.Run(fmt.Sprintf("%s+%s %s", tc.first, tc.other, tc.name), func(t *testing.T) {
			n := twoNetworks{rig: r, name: tc.name, strict: tc.first != "stock"}
			n.first = n.create("first", tc.first, 40+i)
			n.other = n.create(tc.name, tc.other, 60+i)
			t.Cleanup(func() { r.docker("network", "rm", "first", tc.name) })
			n.run(t)
		})
	}
}

// twoNetworks are a network called first, and one more.
type twoNetworks struct {
	*rig
	name         string // of the other one
	first, other netip.Prefix
	strict       bool // no moment without a pin
}

func (n *twoNetworks) create(name, kind string, second int) netip.Prefix {
	n.t.Helper()
	subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(second), 0, 0}), 16)
	args := []string{"network", "create", "--subnet", subnet.String()}
	switch kind {
	case "eipnet":
		args = append(args, "-d", "eipnet")
	case "strict":
		args = append(args, "--label", "eip.strict=true")
	}
	n.docker(append(args, name)...)
	return subnet
}

func (n *twoNetworks) run(t *testing.T) {
	byDefault := n.first
	if n.name < "first" {
		byDefault = n.other
	}
	n.resetSniffers()
	n.start(t, "both", "--network", "first", "--label", "eip.nic=eth1")
	n.pinnedAndBy(t, 1, n.first)
	n.docker("exec", "-d", "both", "/app", "tcp", "--hold", fmt.Sprintf("%v:7", lab.SiteAddr))
	session := n.line(t, netip.AddrPort{})
	n.docker("network", "connect", n.name, "both")
	n.pinnedAndBy(t, 2, byDefault)
	n.line(t, session)
	before := n.spoofed(t)
	n.line(t, session)
	if after := n.spoofed(t); after > before {
		t.Errorf("%d frames of an honest container were dropped", after-before)
	}
	n.docker("network", "disconnect", "first", "both")
	n.pinnedAndBy(t, 1, n.other)
	n.docker("network", "connect", "first", "both")
	n.pinnedAndBy(t, 2, byDefault)
	n.docker("restart", "-t", "1", "both") // both from its beginning
	n.pinnedAndBy(t, 2, byDefault)
	n.clean()
}

func (n *twoNetworks) spoofed(t *testing.T) uint64 {
	t.Helper()
	s, err := n.status()
	if err != nil {
		t.Fatal(err)
	}
	return s.Counters["spoofed"].Packets
}

// pinnedAndBy checks that container both has so many endpoints, all pinned, its
// default route by this network, and that it leaves as eth1 and by nothing else.
func (n *twoNetworks) pinnedAndBy(t *testing.T, endpoints int, network netip.Prefix) {
	t.Helper()
	n.eventually("all endpoints to be pinned", func() error {
		s, err := n.status()
		if err != nil {
			return err
		}
		pinned := 0
		for _, e := range s.Endpoints {
			if e.Container == "both" && e.State == plan.StatePinned {
				pinned++
			}
		}
		if pinned != endpoints {
			return fmt.Errorf("%d of %d are", pinned, endpoints)
		}
		return nil
	})
	if n.strict {
		n.clean()
	}
	n.resetSniffers()
	n.leavesAs(t, "both", n.EIP("eth1").String())
	n.onlyBy("eth1", lab.ProtoTCP, lab.SiteAddr)
	err := n.inContainer("both", func() error {
		routes, err := netlink.RouteGet(lab.SiteAddr.AsSlice())
		if err != nil {
			return err
		}
		if gateway, ok := netip.AddrFromSlice(routes[0].Gw); !ok || !network.Contains(gateway.Unmap()) {
			return fmt.Errorf("the default route is by %v, want one in %v", routes[0].Gw, network)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// line waits for the next line of a session with the site, this one if it is
// given, and returns the session's far end.
func (n *twoNetworks) line(t *testing.T, session netip.AddrPort) netip.AddrPort {
	t.Helper()
	n.Site.Reset()
	ctx, cancel := context.WithTimeoutCause(t.Context(), patience, errors.New("no line came"))
	defer cancel()
	seen, err := n.Site.Wait(ctx, func(s lab.Seen) bool {
		return s.Proto == "tcp" && s.Detail != "" && (!session.IsValid() || s.Src == session)
	})
	if err != nil {
		t.Fatalf("session %v of both: %v", session, err)
	}
	if seen.Src.Addr() != n.EIP("eth1") {
		t.Errorf("the session came from %v", seen.Src)
	}
	return seen.Src
}
