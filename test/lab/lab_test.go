package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Init()
	if os.Getenv(childEnv) != "" {
		os.Exit(holdForParent())
	}
	os.Exit(m.Run())
}

// testEngine is the engine of the tests that need one.
func testEngine() string {
	if e := os.Getenv("EIPNET_ENGINE"); e != "" {
		return e
	}
	return "28.5"
}

func TestSourceCheck(t *testing.T) {
	for _, shape := range []Shape{OneSubnet, ThreeSubnets} {
		t.Run(shape.String(), func(t *testing.T) {
			l := Start(t, Config{Shape: shape})
			before, err := l.Drops(t.Context(), "eth1")
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Prove(t.Context()); err != nil {
				t.Fatal(err)
			}
			after, err := l.Drops(t.Context(), "eth1")
			if err != nil {
				t.Fatal(err)
			}
			// What takes long to be seen is sent again.
			if after.IP4 == before.IP4 || after.IP6 == before.IP6 || after.ARP == before.ARP || after.MAC != before.MAC {
				t.Errorf("dropped %+v before, %+v after: want IPv4, IPv6 and ARP more", before, after)
			}
			if f, err := l.Foreign(t.Context()); err != nil || len(f) > 0 {
				t.Errorf("foreign after proving: %v, %v: want none", f, err)
			}
			testPlants(t, l)
		})
	}
}

// testPlants sends frames that nobody marked as planted: each is dropped, counted and reported.
func testPlants(t *testing.T, l *Lab) {
	t.Helper()
	n, other := l.NIC("eth1"), l.NIC("eth0")
	for _, tt := range []struct {
		name  string
		frame []byte
		drop  func(Drops) uint64
		kind  Kind
	}{
		{"neighbour's address", frameIP4(n.MAC, broadcast, other.Addr.Addr(), SiteAddr, nil), func(d Drops) uint64 { return d.IP4 }, IPv4},
		{"neighbour's MAC", frameIP4(other.MAC, broadcast, n.Addr.Addr(), SiteAddr, nil), func(d Drops) uint64 { return d.MAC }, IPv4},
		{"neighbour's IPv6", frameIP6(n.MAC, broadcast, other.Addr6.Addr(), SiteAddr6, nil), func(d Drops) uint64 { return d.IP6 }, IPv6},
		{"ARP for the neighbour", frameARP(n.MAC, other.Addr.Addr(), n.Gateway), func(d Drops) uint64 { return d.ARP }, ARP},
		{"own", frameARP(n.MAC, n.Addr.Addr(), n.Gateway), nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := l.ResetSniffers(t.Context()); err != nil {
				t.Fatal(err)
			}
			before, err := l.Drops(t.Context(), n.Name)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.SendFrame(n.Name, tt.frame); err != nil {
				t.Fatal(err)
			}
			foreign, err := l.Foreign(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			after, err := l.Drops(t.Context(), n.Name)
			if err != nil {
				t.Fatal(err)
			}
			if tt.drop == nil {
				if after != before || len(foreign) != 0 {
					t.Errorf("dropped %+v → %+v, foreign %v: want nothing", before, after, foreign)
				}
				return
			}
			if tt.drop(after)-tt.drop(before) != 1 || after.Total()-before.Total() != 1 {
				t.Errorf("dropped %+v → %+v: want one more for its reason", before, after)
			}
			if len(foreign) != 1 || foreign[0].Kind != tt.kind || foreign[0].NIC != n.Name {
				t.Errorf("foreign %v: want one %s on %s", foreign, tt.kind, n.Name)
			}
		})
	}
}

// TestSnifferReadsLate: the router goes on with the pieces of a datagram, with
// another address, before the sniffer looks at them.
func TestSnifferReadsLate(t *testing.T) {
	l := Start(t, Config{})
	c, err := l.HostDial(t.Context(), netip.Addr{}, "udp", fmt.Sprintf("%v:7", SiteAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := l.ResetSniffers(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := l.Sniffer("eth0")
	err = func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, err := c.Write(make([]byte, 5000)); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(15 * time.Second)); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 100)) // it has gone all the way
		return err
	}()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := l.Foreign(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(foreign) > 0 {
		t.Errorf("foreign: %v", foreign)
	}
	if n := s.Seen(func(p Packet) bool { return p.Kind == IPv4 && p.Proto == ProtoUDP && p.Dst == SiteAddr }); n != 4 {
		t.Errorf("%d pieces were seen, want 4", n)
	}
}

func TestHostRouting(t *testing.T) {
	for _, shape := range []Shape{OneSubnet, ThreeSubnets} {
		t.Run(shape.String(), func(t *testing.T) {
			l := Start(t, Config{Shape: shape})
			ctx := t.Context()
			url := "http://" + SiteAddr.String() + "/ip"
			if got, err := l.HostGet(ctx, l.Addr("eth0"), url); err != nil || got != l.EIP("eth0").String() {
				t.Errorf("from eth0's address the site sees %q, %v: want %s", got, err, l.EIP("eth0"))
			}
			v6 := "http://[" + SiteAddr6.String() + "]/ip"
			if got, err := l.HostGet(ctx, l.Addr6("eth0"), v6); err != nil || got != l.Addr6("eth0").String() {
				t.Errorf("from eth0's IPv6 address the site sees %q, %v: want %s", got, err, l.Addr6("eth0"))
			}
			if f, err := l.Foreign(ctx); err != nil || len(f) > 0 {
				t.Fatalf("foreign: %v, %v: want none", f, err)
			}
			testWrongNIC(t, l, url)
		})
	}
}

// testWrongNIC shows the failure that the lab is for: without policy routing the second NIC's address
// leaves by the first NIC, and the cloud drops it.
func testWrongNIC(t *testing.T, l *Lab, url string) {
	t.Helper()
	before, err := l.Drops(t.Context(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if got, err := l.HostGet(ctx, l.Addr("eth1"), url); err == nil {
		t.Errorf("from eth1's address without policy routing the site sees %s: want no answer", got)
	}
	foreign, err := l.Foreign(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(foreign) == 0 {
		t.Error("no foreign packet was seen")
	}
	for _, f := range foreign {
		if f.NIC != "eth0" || f.Src != l.Addr("eth1") || f.Dst != SiteAddr {
			t.Errorf("foreign packet %s: want only eth1's address on eth0", f)
		}
	}
	after, err := l.Drops(t.Context(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if after.IP4 == before.IP4 {
		t.Errorf("the fabric dropped nothing on eth0: %+v → %+v", before, after)
	}
	if n := l.Sniffer("eth1").Seen(To(ProtoTCP, SiteAddr)); n != 0 {
		t.Errorf("%d packets left by eth1: want none", n)
	}
}

// TestCopiedRecipe shows that the recipe which people copy does not work on a cloud: inbound to the
// second NIC is not even answered. If this test fails, the lab is not honest.
func TestCopiedRecipe(t *testing.T) {
	l := Start(t, Config{Engine: testEngine()})
	ctx := t.Context()
	if err := l.BuildImage(ctx); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{
		"network create --subnet 172.19.0.0/16 -o com.docker.network.bridge.name=eip_bridge eip_bridge",
		"run -d --name c0 --network eip_bridge --ip 172.19.0.100 -p 172.31.0.8:8090:8080 " + Image,
		"run -d --name c1 --network eip_bridge --ip 172.19.0.101 -p 172.31.0.14:8090:8080 " + Image,
	} {
		if _, err := l.Docker(ctx, strings.Fields(args)...); err != nil {
			t.Fatal(err)
		}
	}
	for container, nic := range map[string]string{"172.19.0.100": "172.31.0.8", "172.19.0.101": "172.31.0.14"} {
		if _, err := l.Host.Run(ctx, "iptables", "-t", "nat", "-I", "POSTROUTING", "-s", container, "-j", "SNAT", "--to-source", nic); err != nil {
			t.Fatal(err)
		}
	}
	get := func(nic string) (string, error) {
		return l.SiteGet(ctx, "http://"+netip.AddrPortFrom(l.EIP(nic), 8090).String()+"/")
	}
	if got, err := get("eth0"); err != nil || got != l.EIP("eth0").String() {
		t.Errorf("the container on eth0 answers %q, %v: want %s", got, err, l.EIP("eth0"))
	}
	if f, err := l.Foreign(ctx); err != nil || len(f) > 0 {
		t.Errorf("foreign packets of the first container: %v, %v: want none", f, err)
	}
	if got, err := get("eth1"); err == nil {
		t.Errorf("the container on eth1 answers %q: want a time-out", got)
	}
	foreign, err := l.Foreign(ctx)
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for _, f := range foreign {
		seen = seen || f.NIC == "eth0" && f.Kind == IPv4 && f.Src == l.Addr("eth1")
	}
	if !seen {
		t.Errorf("foreign packets %v: want eth1's address on eth0", foreign)
	}
}

// TestEngine is for each engine in turn: EIPNET_ENGINE says which.
func TestEngine(t *testing.T) {
	at := time.Now()
	l := Start(t, Config{Engine: testEngine()})
	t.Logf("engine %s: up in %s", testEngine(), time.Since(at).Round(time.Millisecond))
	testEngineWorks(t, l)
}

func testEngineWorks(t *testing.T, l *Lab) {
	t.Helper()
	ctx := t.Context()
	if v, err := l.Docker(ctx, "version", "--format", "{{.Server.Version}}"); err != nil || !strings.HasPrefix(v, l.cfg.Engine+".") {
		t.Errorf("engine version %q, %v: want %s", v, err, l.cfg.Engine)
	}
	if d, err := l.Docker(ctx, "info", "--format", "{{.Driver}} {{.CgroupDriver}}"); err != nil || d != "overlay2 cgroupfs" {
		t.Errorf("drivers %q, %v: want overlay2 cgroupfs", d, err)
	}
	if err := l.BuildImage(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Docker(ctx, "run", "-d", "--restart", "always", "--name", "web", "-p", "8090:8080", "-p", "8091:8081", Image); err != nil {
		t.Fatal(err)
	}
	url := "http://" + netip.AddrPortFrom(l.EIP("eth0"), 8090).String() + "/"
	testEgress(t, l, url)
	for _, tt := range []struct{ args, want string }{
		{"get http://" + SiteAddr.String() + "/ip", l.EIP("eth0").String()},
		{"lookup " + SiteName, SiteAddr.String()},
		{"udp " + SiteAddr.String() + ":7 eipnet", l.EIP("eth0").String() + ":"},
		{"tcp " + SiteAddr.String() + ":7", l.EIP("eth0").String() + ":"},
		{"ping " + SiteAddr.String(), SiteAddr.String()},
		{"burst " + SiteAddr.String() + ":7", "sent 50"},
	} {
		out, err := l.Docker(ctx, append([]string{"run", "--rm", Image}, strings.Fields(tt.args)...)...)
		if err != nil || !strings.HasPrefix(out, tt.want) {
			t.Errorf("app %s: %q, %v: want %q", tt.args, out, err, tt.want)
		}
	}
	if err := l.RestartEngine(ctx); err != nil {
		t.Fatal(err)
	}
	testEgress(t, l, url)
	if err := l.StopEngine(ctx, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := l.StartEngine(ctx); err != nil {
		t.Fatal(err)
	}
	testEgress(t, l, url)
}

// testEgress asks until the published port answers: after a restart the container needs a moment.
func testEgress(t *testing.T, l *Lab, url string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		got, err := l.SiteGet(ctx, url)
		if err == nil {
			if got != l.EIP("eth0").String() {
				t.Errorf("%s answers %q: want %s", url, got, l.EIP("eth0"))
			}
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s does not answer: %v", url, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
