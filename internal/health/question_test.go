package health

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/netnstest"
)

func ip(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(command)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", command, err, out)
	}
}

// TestQuestions asks a real gateway, and none, through a real link.
func TestQuestions(t *testing.T) {
	netnstest.Run(t, func() {
		far := netnstest.New(t)
		ip(t, "link add eth1 address 02:31:00:00:00:0e type veth peer name sw")
		link, err := netlink.LinkByName("sw")
		if err == nil {
			err = netlink.LinkSetNsFd(link, far.FD())
		}
		if err != nil {
			t.Fatal(err)
		}
		ip(t, "addr add 172.31.0.14/20 dev eth1")
		ip(t, "addr add 2001:db8:31::14/64 dev eth1 nodad")
		ip(t, "link set eth1 addrgenmode eui64 up")
		far.Do(func() {
			ip(t, "addr add 172.31.0.1/20 dev sw")
			ip(t, "addr add 2001:db8:31::1/64 dev sw nodad")
			ip(t, "link set sw up")
		})
		eth1, err := net.InterfaceByName("eth1")
		if err != nil {
			t.Fatal(err)
		}
		nic := model.NIC{
			Name: "eth1", Index: eth1.Index, MAC: eth1.HardwareAddr.String(), Up: true, Carrier: true,
			Addrs: []netip.Prefix{netip.MustParsePrefix("172.31.0.14/20"), netip.MustParsePrefix("2001:db8:31::14/64")},
		}
		gateway := func(s string) model.Gateway { return model.Gateway{Addr: netip.MustParseAddr(s)} }
		tracker := New(Options{Log: slog.New(slog.DiscardHandler)})
		ask := func(nic model.NIC, gone func()) {
			t.Helper()
			q, err := tracker.open(nic, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			deadline := time.Now().Add(10 * time.Second) // a link-local address may be tentative for a moment
			for err = once(q); err != nil && time.Now().Before(deadline); {
				err = once(q)
			}
			if err != nil {
				t.Errorf("a gateway that is there: %v", err)
			}
			gone()
			if err := once(q); err == nil || !strings.Contains(err.Error(), "gets no answer") {
				t.Errorf("a gateway that is gone: %v", err)
			}
		}
		v4 := nic
		v4.Gateway4 = gateway("172.31.0.1")
		ask(v4, func() { far.Do(func() { ip(t, "addr del 172.31.0.1/20 dev sw") }) })
		v6 := nic
		v6.Gateway6 = gateway("2001:db8:31::1")
		ask(v6, func() { far.Do(func() { ip(t, "addr del 2001:db8:31::1/64 dev sw") }) })
		if q, err := tracker.open(nic, 0); q != nil || err != nil {
			t.Errorf("without a gateway there is nothing to ask: %v, %v", q, err)
		}
		neighbours, err := netlink.NeighList(eth1.Index, netlink.FAMILY_V4)
		if err != nil || len(neighbours) > 0 {
			t.Errorf("the kernel's neighbours: %v, %v; asking must not touch them", neighbours, err)
		}
	})
}

func once(q Question) error {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	return q.Ask(ctx)
}

// TestTargets asks the loopback's own services.
func TestTargets(t *testing.T) {
	netnstest.Run(t, func() {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		own := netip.MustParseAddr("127.0.0.1")
		open := netip.MustParseAddrPort(l.Addr().String())
		through := func(target Target) through { return through{target, own, "lo", model.DefaultMask.Of(1)} }
		good, echo, bad := Target{open.Addr(), open.Port()}, Target{Addr: own}, Target{own, 1}
		for _, tc := range []struct {
			targets []Target
			ok      bool
		}{{[]Target{good}, true}, {[]Target{echo}, true}, {[]Target{bad}, false}, {[]Target{bad, good}, true}} {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			var errs []error
			answered := false
			for _, target := range tc.targets { // on this thread: the namespace is its own
				err := through(target).ask(ctx)
				answered = answered || err == nil
				errs = append(errs, err)
			}
			cancel()
			if answered != tc.ok {
				t.Errorf("%v: %v", tc.targets, errs)
			}
		}
	})
}

func TestParseTarget(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "192.0.2.1:443": "192.0.2.1:443", "2001:db8::1": "2001:db8::1", "[2001:db8::1]:443": "[2001:db8::1]:443",
		"example.org": "", "192.0.2.1:0": "", "192.0.2.1:x": "", "": "", "fe80::1%eth0": "",
	} {
		got, err := ParseTarget(in)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}
