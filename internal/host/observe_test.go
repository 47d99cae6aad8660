package host

import (
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/netnstest"
)

var (
	compareNetip = cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})
	equateEmpty  = cmpopts.EquateEmpty()
)

func names(nics []model.NIC) []string {
	var out []string
	for _, n := range nics {
		out = append(out, n.Name)
	}
	return out
}

func TestObserveClassifiesLinks(t *testing.T) {
	tests := []struct {
		name             string
		include, exclude []string
		managed          []string
		want             []string
		unmatched        []string // of include
	}{
		{name: "plain", want: []string{"eth0", "vpn0"}},
		{name: "managed without an address", managed: []string{"eth2"}, want: []string{"eth0", "eth2", "vpn0"}},
		{name: "included bridge", include: []string{"br0"}, want: []string{"br0", "eth0", "vpn0"}},
		{name: "included by glob", include: []string{"e*2"}, want: []string{"eth0", "eth2", "vpn0"}},
		{name: "excluded by glob", exclude: []string{"vpn*"}, want: []string{"eth0"}},
		{name: "a glob makes no NIC of container networking", include: []string{"[bdel]*"}, want: []string{"br-0123456789", "br0", "eth0", "eth0p", "eth2", "eth2p", "vpn0"}},
		{name: "nor does a name", include: []string{"docker0", "eipvaaaaaaaaaaa", "dport", "eth0", "lo"}, want: []string{"eth0", "vpn0"}, unmatched: []string{"docker0", "eipvaaaaaaaaaaa", "dport", "lo"}},
		{name: "both: exclude wins", include: []string{"eth0"}, exclude: []string{"eth0"}, want: []string{"vpn0"}, unmatched: []string{"eth0"}},
		{name: "what is not there", include: []string{"eth7", "wlan*"}, want: []string{"eth0", "vpn0"}, unmatched: []string{"eth7", "wlan*"}},
	}
	ns := netnstest.New(t)
	ns.Do(func() {
		ip(t,
			"link add eth0 type veth peer name eth0p", "addr add 172.31.0.8/20 dev eth0", "link set eth0 up",
			"link add vpn0 type veth peer name vpn0p", "addr add 10.8.0.2/24 dev vpn0",
			"link add eth2 type veth peer name eth2p", "addr add 169.254.3.3/16 dev eth2 scope link", // link scope only
			"link add br0 type bridge", "addr add 192.168.122.1/24 dev br0",
			"link add port0 type veth peer name port0p", "link set port0 master br0", "addr add 192.168.122.2/24 dev port0",
			"link add docker0 type bridge", "addr add 172.17.0.1/16 dev docker0",
			"link add br-0123456789ab type bridge", "addr add 172.18.0.1/16 dev br-0123456789ab", "addr add fd12::1/64 dev br-0123456789ab nodad",
			"link add br-0123456789 type bridge", "addr add 172.20.0.1/16 dev br-0123456789",
			"link add eip_bridge type bridge", "link set eip_bridge alias eipnet~network~abc", "addr add 172.19.0.1/16 dev eip_bridge",
			"link add eipvaaaaaaaaaaa type veth peer name eipcaaaaaaaaaaa", "addr add 172.19.0.9/16 dev eipvaaaaaaaaaaa", "link set eipvaaaaaaaaaaa alias eipnet~endpoint~x",
			"link add dport type veth peer name far", "link set dport master docker0",
			"link add custom type bridge", "addr add 172.21.0.1/16 dev custom", // by com.docker.network.bridge.name
			"link add br-ba9876543210 type bridge", "link set br-ba9876543210 alias eipnet~network~def",
		)
	})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ns.Do(func() {
				h, _ := open(t, Options{Include: tt.include, Exclude: tt.exclude})
				got := observe(t, h, tt.managed...)
				if diff := cmp.Diff(tt.want, names(got.NICs)); diff != "" {
					t.Errorf("NICs (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tt.unmatched, got.Unmatched, equateEmpty); diff != "" {
					t.Errorf("patterns that match nothing (-want +got):\n%s", diff)
				}
				wantBridges := []model.Bridge{
					{Name: "br-0123456789ab", Subnets: []model.Subnet{
						{Prefix: netip.MustParsePrefix("172.18.0.0/16"), Gateway: addrOf("172.18.0.1")},
						{Prefix: netip.MustParsePrefix("fd12::/64"), Gateway: addrOf("fd12::1")},
					}},
					{Name: "docker0", Subnets: []model.Subnet{{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Gateway: addrOf("172.17.0.1")}}},
				}
				if diff := cmp.Diff(wantBridges, got.Bridges, compareNetip); diff != "" {
					t.Errorf("bridges (-want +got):\n%s", diff)
				}
				for _, n := range got.NICs {
					if want := matches(tt.include, n.Name); n.Included != want {
						t.Errorf("%s: Included is %v", n.Name, n.Included)
					}
				}
				if !slices.IsSorted(got.Links) || !slices.Contains(got.Links, "docker0") || !slices.Contains(got.Links, "lo") {
					t.Errorf("links: %v", got.Links)
				}
				for _, a := range []string{"172.21.0.1", "127.0.0.1", "169.254.3.3", "172.17.0.1", "172.19.0.1", "fd12::1"} {
					if !slices.Contains(got.Locals, addrOf(a)) {
						t.Errorf("locals lack %s: %v", a, got.Locals)
					}
				}
			})
		})
	}
}

func TestObserveNIC(t *testing.T) {
	host, _ := twoNICs(t)
	host.Do(func() {
		h, _ := open(t, Options{})
		ip(t, "addr add 172.31.0.9/20 dev eth0", "addr add 172.31.0.10/32 dev eth0", "addr add 172.31.0.7/20 dev eth0",
			"addr add fd77::8/128 dev eth0 nodad", "addr add 2001:db8::8/64 dev eth0 nodad", "addr add 2001:db8::7/128 dev eth0 nodad", "addr add 2001:db8::9/64 dev eth0 nodad preferred_lft 0",
			"route add default via 172.31.0.2 dev eth1 metric 200", "route add default via 172.31.0.1 dev eth0 metric 100",
			"route add 10.0.0.0/8 via 172.31.0.3 dev eth0", "route add 10.2.0.0/16 dev eth0 src 172.31.0.9 metric 5",
			"route add 10.3.0.0/16 nexthop via 172.31.0.3 dev eth0 nexthop via 172.31.0.4 dev eth1",
			"route add blackhole 10.4.0.0/16", "-6 route add 2001:db8:1::/48 via 2001:db8::1 dev eth0")
		setSysctl(t, "net/ipv4/conf/eth0/rp_filter", "1")
		got := observe(t, h)
		n, ok := got.NIC("eth0")
		if !ok {
			t.Fatalf("no eth0 in %v", names(got.NICs))
		}
		pfx := netip.MustParsePrefix
		want := model.NIC{
			Name: "eth0", Index: n.Index, MAC: n.MAC, Up: true, Carrier: true, Primary: true,
			Addrs: prefixes("172.31.0.8/20", "172.31.0.10/32", "172.31.0.9/20", "172.31.0.7/20", "2001:db8::8/64", "2001:db8::7/128", "fd77::8/128"),
			Routes: []model.Route{
				{Dst: pfx("10.0.0.0/8"), Via: addrOf("172.31.0.3")},
				{Dst: pfx("10.2.0.0/16"), Src: addrOf("172.31.0.9"), Metric: 5},
				{Dst: pfx("10.3.0.0/16"), Via: addrOf("172.31.0.3")},
				{Dst: pfx("172.31.0.0/20"), Src: addrOf("172.31.0.8")},
				{Dst: pfx("2001:db8::/64"), Metric: 256},
				{Dst: pfx("2001:db8::7/128"), Metric: 256},
				{Dst: pfx("2001:db8:1::/48"), Via: addrOf("2001:db8::1"), Metric: 1024},
				{Dst: pfx("fd77::8/128"), Metric: 256},
			},
			Gateway4: model.Gateway{Addr: addrOf("172.31.0.1"), Source: "route"},
		}
		if diff := cmp.Diff(want, n, compareNetip, equateEmpty); diff != "" {
			t.Errorf("eth0 (-want +got):\n%s", diff)
		}
		if eth1, _ := got.NIC("eth1"); eth1.Primary || eth1.Gateway4.Addr != addrOf("172.31.0.2") {
			t.Errorf("eth1: primary %v, gateway %v", eth1.Primary, eth1.Gateway4)
		}
		if !got.IPv6 || got.ForwardingOurs {
			t.Errorf("IPv6 %v, ForwardingOurs %v", got.IPv6, got.ForwardingOurs)
		}
		for _, p := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/all/rp_filter", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/eth1/arp_announce"} {
			if got.Sysctls[p] != sysctlValue(t, p) {
				t.Errorf("sysctl %s: %q, want %q", p, got.Sysctls[p], sysctlValue(t, p))
			}
		}
		if got.Sysctls["net/ipv4/conf/eth0/rp_filter"] != "1" {
			t.Errorf("sysctls: %v", got.Sysctls)
		}
		ip(t, "link set eth0 down")
		if n, _ := observe(t, h).NIC("eth0"); n.Up || n.Carrier {
			t.Errorf("eth0 is down: up %v, carrier %v", n.Up, n.Carrier)
		}
	})
}

// plan asks about these switches, and a pass reads no other file.
func TestObserveReadsOnlyTheSwitchesThatAreAskedFor(t *testing.T) {
	host, _ := twoNICs(t)
	host.Do(func() {
		ip(t, "link add eip_bridge type bridge", "link set eip_bridge alias eipnet~network~abc", "link add docker0 type bridge")
		setSysctl(t, conf4("all", "rp_filter"), "1")
		setSysctl(t, conf4("eth1", "rp_filter"), "0")
		h, _ := open(t, Options{})
		want := map[string]string{
			ipForward: sysctlValue(t, ipForward), conf4("all", "rp_filter"): "1",
			conf6("all", "forwarding"):         sysctlValue(t, conf6("all", "forwarding")),
			"net/ipv4/ip_local_port_range":     sysctlValue(t, "net/ipv4/ip_local_port_range"),
			"net/ipv4/ip_local_reserved_ports": sysctlValue(t, "net/ipv4/ip_local_reserved_ports"),
		}
		for _, p := range []string{model.SysctlBridged4, model.SysctlBridged6} {
			if h.exists(p) {
				want[p] = sysctlValue(t, p)
			}
		}
		for _, dev := range []string{"eth0", "eth1", "eip_bridge"} {
			for _, s := range []string{"rp_filter", "arp_ignore", "arp_announce"} {
				want[conf4(dev, s)] = sysctlValue(t, conf4(dev, s))
			}
		}
		if want[conf4("eth1", "rp_filter")] != "0" {
			t.Fatal("the test is wrong")
		}
		if diff := cmp.Diff(want, observe(t, h).Sysctls); diff != "" {
			t.Errorf("sysctls (-want +got):\n%s", diff)
		}
	})
}

func TestGatewayLadder(t *testing.T) {
	lease := func(text string, path ...string) func(*testing.T, string, int) {
		return func(t *testing.T, root string, index int) {
			name := filepath.Join(append([]string{root}, path...)...)
			if filepath.Base(name) == "INDEX" {
				name = filepath.Join(filepath.Dir(name), strconv.Itoa(index))
			}
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	dhclient := "lease {\n  interface \"eth1\";\n  fixed-address 172.31.0.14;\n  option routers 172.31.0.3;\n}\n" +
		"lease {\n  interface \"eth1\";\n  fixed-address 172.31.0.14;\n  option routers 172.31.0.5, 172.31.0.6;\n}\n"
	tests := []struct {
		name     string
		gateways map[string]netip.Addr
		lines    []string
		files    func(*testing.T, string, int)
		want     model.Gateway
	}{
		{
			name: "config beats routes", gateways: map[string]netip.Addr{"eth1": addrOf("172.31.0.77")},
			lines: []string{"route add default via 172.31.0.2 dev eth1"},
			want:  model.Gateway{Addr: addrOf("172.31.0.77"), Source: "config"},
		},
		{
			name: "main beats another table", lines: []string{"route add default via 172.31.0.3 dev eth1 table 50", "route add default via 172.31.0.2 dev eth1 metric 900"},
			want: model.Gateway{Addr: addrOf("172.31.0.2"), Source: "route"},
		},
		{
			name: "another table", lines: []string{"route add default via 172.31.0.9 dev eth1 table 8102 proto 201", "route add default via 172.31.0.3 dev eth1 table 10001"},
			want: model.Gateway{Addr: addrOf("172.31.0.3"), Source: "route"},
		},
		{
			name: "networkd", files: lease("ADDRESS=172.31.0.14\nROUTER=172.31.0.4 172.31.0.5\n", "run/systemd/netif/leases", "INDEX"),
			want: model.Gateway{Addr: addrOf("172.31.0.4"), Source: "lease"},
		},
		{
			name: "dhclient", files: lease(dhclient, "var/lib/dhcp", "dhclient.eth1.leases"),
			want: model.Gateway{Addr: addrOf("172.31.0.5"), Source: "lease"},
		},
		{
			name: "dhclient of another address", files: lease("lease {\n  fixed-address 10.0.0.1;\n  option routers 10.0.0.254;\n}\n", "var/lib/dhcp", "dhclient.eth1.lease"),
		},
		{
			name: "same subnet", lines: []string{"route add default via 172.31.0.1 dev eth0"},
			want: model.Gateway{Addr: addrOf("172.31.0.1"), Source: "same subnet as eth0"},
		},
		{name: "unmanaged is not asked for", lines: []string{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			host, far := twoNICs(t)
			far.Do(func() { ip(t, "addr add 172.31.0.1/20 dev sw") })
			host.Do(func() {
				root := t.TempDir()
				h, _ := open(t, Options{Root: root, Gateways: tt.gateways})
				ip(t, tt.lines...)
				eth1, _ := observe(t, h).NIC("eth1")
				if tt.files != nil {
					tt.files(t, root, eth1.Index)
				}
				eth1, _ = observe(t, h).NIC("eth1")
				if diff := cmp.Diff(tt.want, eth1.Gateway4, compareNetip); diff != "" {
					t.Errorf("gateway (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestFirstAddressIsAskedFor(t *testing.T) {
	host, far := twoNICs(t)
	far.Do(func() {
		ip(t, "addr add 172.31.0.1/20 dev sw", "addr add 2001:db8::1/64 dev sw nodad")
		setSysctl(t, "net/ipv6/conf/all/forwarding", "1")
	})
	host.Do(func() {
		ip(t, "addr add 2001:db8::14/64 dev eth1 nodad")
		var h *Host
		var eth1 model.NIC
		for range 10 { // the answer may need longer than probeWait on a busy machine
			ip(t, "neigh flush dev eth1")
			h, _ = open(t, Options{})
			if eth1, _ = observe(t, h, "eth1").NIC("eth1"); eth1.Gateway4.Addr.IsValid() {
				break
			}
		}
		if eth1.Gateway4 != (model.Gateway{Addr: addrOf("172.31.0.1"), Source: "first address"}) {
			t.Errorf("IPv4 gateway after one Observe: %v", eth1.Gateway4)
		}
		eventually(t, "IPv6 gateway", func() bool {
			eth1, _ = observe(t, h, "eth1").NIC("eth1")
			return eth1.Gateway6 == model.Gateway{Addr: addrOf("2001:db8::1"), Source: "first address"}
		})
		if again := quickest(func() { observe(t, h, "eth1") }, probeWait/2); again > probeWait/2 {
			t.Errorf("a known answer was waited for: %v", again)
		}
	})
}

func TestFirstAddressThatIsSilentIsNoGateway(t *testing.T) {
	host, far := twoNICs(t)
	host.Do(func() {
		var pokes atomic.Int32
		h, _ := open(t, Options{Poke: func() { pokes.Add(1) }})
		start := time.Now()
		eth1, _ := observe(t, h, "eth1").NIC("eth1")
		if took := time.Since(start); took > probeTimeout { // in which the probe itself gives up
			t.Errorf("Observe took %v", took)
		}
		if eth1.Gateway4.Addr.IsValid() {
			t.Fatalf("gateway %v, though nobody answers", eth1.Gateway4)
		}
		if took := quickest(func() { observe(t, h, "eth1") }, probeWait/2); took > probeWait/2 {
			t.Errorf("the second Observe waited again: %v", took)
		}
		far.Do(func() { ip(t, "addr add 172.31.0.1/20 dev sw") })
		eventually(t, "a poke when the gateway answers", func() bool { return pokes.Load() > 0 })
		eth1, _ = observe(t, h, "eth1").NIC("eth1")
		if eth1.Gateway4.Addr != addrOf("172.31.0.1") {
			t.Errorf("gateway %v after the poke", eth1.Gateway4)
		}
		if eth1, _ = observe(t, h).NIC("eth1"); eth1.Gateway4.Addr.IsValid() {
			t.Errorf("gateway %v of an unmanaged NIC", eth1.Gateway4)
		}
	})
}

// quickest is how long it takes, at best of up to ten tries: a busy machine is
// slow now and then. What is within the limit is quick enough.
func quickest(do func(), limit time.Duration) time.Duration {
	best := time.Duration(math.MaxInt64)
	for try := 0; try < 10 && best > limit; try++ {
		start := time.Now()
		do()
		best = min(best, time.Since(start))
	}
	return best
}

func TestProbeOf(t *testing.T) {
	tests := []struct{ addr, want string }{
		{"172.31.0.14/20", "172.31.0.1"},
		{"172.31.0.1/20", ""},
		{"10.0.0.2/32", ""},
		{"10.0.0.2/31", "10.0.0.3"},
		{"10.0.0.3/31", "10.0.0.2"},
		{"10.0.0.2/30", "10.0.0.1"},
	}
	for _, tt := range tests {
		key, ok := probeOf(model.NIC{Addrs: prefixes(tt.addr)}, model.IPv4)
		if ok != (tt.want != "") || ok && key.target != addrOf(tt.want) {
			t.Errorf("probeOf(%s) = %v, %v; want %q", tt.addr, key.target, ok, tt.want)
		}
	}
}
