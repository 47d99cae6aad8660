package lab

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// pinHost does by hand for eth1 what policy routing needs: a table of its own for its address.
func pinHost(t *testing.T, l *Lab) {
	t.Helper()
	n := l.NIC("eth1")
	script := fmt.Sprintf(`
		ip route replace default via %[1]s dev eth1 onlink table 101 &&
		{ ip rule del priority 101 2>/dev/null || true; } &&
		ip rule add from %[2]s priority 101 lookup 101`, n.Gateway, n.Addr.Addr())
	if _, err := l.Host.Run(t.Context(), "sh", "-c", script); err != nil {
		t.Fatal(err)
	}
}

func TestPolicyRoutingWorks(t *testing.T) {
	for _, shape := range []Shape{OneSubnet, ThreeSubnets} {
		t.Run(shape.String(), func(t *testing.T) {
			l := Start(t, Config{Shape: shape})
			ctx := t.Context()
			url := "http://" + SiteAddr.String() + "/ip"
			pinHost(t, l)
			want := l.EIP("eth1").String()
			if got, err := l.HostGet(ctx, l.Addr("eth1"), url); err != nil || got != want {
				t.Fatalf("by eth1 the site sees %q, %v: want %s", got, err, want)
			}
			if f, err := l.Foreign(ctx); err != nil || len(f) > 0 {
				t.Errorf("foreign: %v, %v: want none", f, err)
			}
			if n := l.Sniffer("eth0").Seen(To(ProtoTCP, SiteAddr)); n != 0 {
				t.Errorf("%d packets left by eth0: want none", n)
			}
			if l.Sniffer("eth1").Counts()[ProtoDst{ProtoTCP, SiteAddr}] == 0 {
				t.Error("no packet was seen on eth1")
			}
			if n := l.Site.Count(func(s Seen) bool { return s.Proto == "http" && s.Src.Addr() == l.EIP("eth1") }); n != 1 {
				t.Errorf("the site recorded %d requests, %v: want 1", n, l.Site.Seen())
			}
			for _, change := range []struct {
				name     string
				off, on  func() error
				reroutes bool
			}{
				{"carrier", func() error { return l.SetCarrier("eth1", false) }, func() error { return l.SetCarrier("eth1", true) }, false},
				{"gateway", func() error { return l.SetGateway(ctx, "eth1", false) }, func() error { return l.SetGateway(ctx, "eth1", true) }, false},
				{"plug", func() error { return l.Unplug("eth1") }, func() error { return l.Plug("eth1") }, true},
			} {
				t.Run(change.name, func(t *testing.T) {
					if err := change.off(); err != nil {
						t.Fatal(err)
					}
					short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
					defer cancel()
					if got, err := l.HostGet(short, l.Addr("eth1"), url); err == nil {
						t.Errorf("without the NIC the site sees %s: want an error", got)
					}
					if _, err := l.Foreign(ctx); err != nil {
						t.Errorf("asking the sniffers: %v", err)
					}
					if err := change.on(); err != nil {
						t.Fatal(err)
					}
					if change.reroutes {
						pinHost(t, l)
					}
					if err := l.Prove(ctx); err != nil {
						t.Errorf("proving: %v", err)
					}
					if got, err := l.HostGet(ctx, l.Addr("eth1"), url); err != nil || got != want {
						t.Errorf("with the NIC again the site sees %q, %v: want %s", got, err, want)
					}
				})
			}
		})
	}
}

func TestLegs(t *testing.T) {
	for _, shape := range []Shape{OneSubnet, ThreeSubnets} {
		t.Run(shape.String(), func(t *testing.T) {
			l := Start(t, Config{Shape: shape})
			ctx := t.Context()
			vpn, err := l.AddVPNLeg(ctx)
			if err != nil {
				t.Fatal(err)
			}
			static, err := l.AddStaticClient(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, tt := range []struct {
				leg  *Leg
				host netip.Addr // the host's address towards the leg
			}{{vpn, vpnHost.Addr()}, {static, l.Addr("eth0")}} {
				t.Run(tt.leg.Name, func(t *testing.T) { testLeg(t, l, tt.leg, tt.host) })
			}
			if f, err := l.Foreign(ctx); err != nil || len(f) > 0 {
				t.Errorf("foreign: %v, %v: want none", f, err)
			}
			if _, err := l.AddVPNLeg(ctx); err == nil {
				t.Error("a second VPN leg was added")
			}
		})
	}
}

// testLeg connects both ways.
func testLeg(t *testing.T, l *Lab, leg *Leg, host netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	got, err := l.HostGet(ctx, netip.Addr{}, "http://"+leg.Addr.String()+"/ip")
	if err != nil || got != host.String() {
		t.Errorf("the leg sees %q, %v: want %s", got, err, host)
	}
	if _, err := l.ServeHost(ctx, host); err != nil {
		t.Fatal(err)
	}
	if got, err := leg.Get(ctx, "http://"+host.String()+"/ip"); err != nil || got != leg.Addr.String() {
		t.Errorf("the host sees %q, %v: want %s", got, err, leg.Addr)
	}
	c, err := leg.Dial(ctx, "udp", netip.AddrPortFrom(host, EchoPorts[0]).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.HasSuffix(line, " hello\n") {
		t.Errorf("udp echo %q, %v: want hello", line, err)
	}
}

func TestHostStateIsStable(t *testing.T) {
	l := Start(t, Config{Engine: testEngine()})
	ctx := t.Context()
	if err := l.BuildImage(ctx); err != nil {
		t.Fatal(err)
	}
	run := func() string {
		t.Helper()
		if _, err := l.Docker(ctx, "run", "--rm", "-p", "8090:8080", Image, "get", "http://"+SiteAddr.String()+"/ip"); err != nil {
			t.Fatal(err)
		}
		state, err := l.HostState(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return state
	}
	before := run() // the engine's first container makes a table that stays
	for _, want := range []string{"172.31.0.14/20", "docker0", "rp_filter = 2", "lookup main", "MASQUERADE"} {
		if !strings.Contains(before, want) {
			t.Errorf("the host's state has no %q:\n%s", want, before)
		}
	}
	after := run()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the host's state after a container came and went (-before +after):\n%s", diff)
	}
	if _, err := l.Host.Run(ctx, "ip", "rule", "add", "priority", "5000", "lookup", "77"); err != nil {
		t.Fatal(err)
	}
	if changed, err := l.HostState(ctx); err != nil || changed == after {
		t.Errorf("a new rule does not show in the host's state (%v)", err)
	}
}
