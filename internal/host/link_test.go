package host

import (
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/netnstest"
	"github.com/eipnet/eipnet/internal/plan"
)

func execOutput(t testing.TB, command string) string {
	t.Helper()
	f := strings.Fields(command)
	out, err := exec.CommandContext(t.Context(), f[0], f[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

func hairpin(t testing.TB, h *Host, name string) bool {
	t.Helper()
	return protinfo(t, h, name).Hairpin
}

func protinfo(t testing.TB, h *Host, name string) netlink.Protinfo {
	t.Helper()
	p, err := h.handle.LinkGetProtinfo(link(t, h, name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAddVethTakesOverWhatACrashLeft(t *testing.T) {
	netnstest.Run(t, func() {
		h, _ := open(t, Options{})
		apply(t, h, plan.Links{Bridges: []plan.BridgeLink{{Name: "eip_bridge", NetworkID: "abc"}}}, nil, true, true)
		v := Veth{Host: "eipv0a1b2c3d4e5", Peer: "eipc0a1b2c3d4e5", Bridge: "eip_bridge", Alias: "eipnet endpoint 0a1b2c3d4e5f"}
		for _, left := range []string{
			"link add eipv0a1b2c3d4e5 master eip_bridge up type veth peer name eipc0a1b2c3d4e5",
			"link set eipv0a1b2c3d4e5 alias eipnet~endpoint~0a1b2c3d4e5", // mended by Apply
		} {
			ip(t, left)
			if err := h.AddVeth(t.Context(), v); err != nil {
				t.Fatalf("after %s: %v", left, err)
			}
			if got := link(t, h, v.Host).Attrs().Alias; got != v.Alias || !hairpin(t, h, v.Host) {
				t.Errorf("after %s: alias %q, hairpin %v", left, got, hairpin(t, h, v.Host))
			}
		}
		ip(t, "link add web type veth peer name far", "link add eipv1 type bridge")
		for _, name := range []string{"web", "eipv1"} {
			v.Host = name
			if err := h.AddVeth(t.Context(), v); err == nil || !strings.Contains(err.Error(), "in use by another link") {
				t.Errorf("AddVeth of %s: %v", name, err)
			}
		}
	})
}

// Somebody deletes the bridge of running containers.
func TestBridgeMadeAgainHasItsPorts(t *testing.T) {
	netnstest.Run(t, func() {
		h, _ := open(t, Options{})
		want := plan.Links{
			Bridges: []plan.BridgeLink{{Name: "eip_bridge", NetworkID: "abc"}, {Name: "eip_two", NetworkID: "def"}},
			Veths:   []plan.VethPort{{Name: "eipvaaaaaaaaaaa", Bridge: "eip_bridge"}, {Name: "eipvbbbbbbbbbbb", Bridge: "eip_two", Isolated: true}, {Name: "eipvccccccccccc", Bridge: "eip_bridge"}},
		}
		apply(t, h, want, nil, true, true)
		apply(t, h, want, nil, true, false) // no veth is there
		for _, v := range want.Veths[:2] {
			id := strings.TrimPrefix(v.Name, "eipv")
			if err := h.AddVeth(t.Context(), Veth{Host: v.Name, Peer: "eipc" + id, Bridge: v.Bridge, Alias: "eipnet endpoint " + id + "12345"}); err != nil {
				t.Fatal(err)
			}
		}
		check := func(after, aliasA string) {
			t.Helper()
			for i, alias := range []string{aliasA, "eipnet endpoint bbbbbbbbbbb12345"} {
				v := want.Veths[i]
				at := link(t, h, v.Name).Attrs()
				if at.MasterIndex != link(t, h, v.Bridge).Attrs().Index || at.Flags&net.FlagUp == 0 || at.Alias != alias || !hairpin(t, h, v.Name) || protinfo(t, h, v.Name).Isolated != v.Isolated {
					t.Errorf("after %s: %s: master %d, flags %v, alias %q", after, v.Name, at.MasterIndex, at.Flags, at.Alias)
				}
			}
		}
		apply(t, h, want, nil, true, true) // one of them is isolated
		apply(t, h, want, nil, true, false)
		check("AddVeth", "eipnet endpoint aaaaaaaaaaa12345")
		for _, damage := range []string{
			"link del eip_bridge", "link set eipvaaaaaaaaaaa down", "link set eipvaaaaaaaaaaa nomaster", "link set eipvaaaaaaaaaaa master eip_two",
			"link del eip_two", "link set eipvbbbbbbbbbbb type bridge_slave isolated off", "link set eipvaaaaaaaaaaa type bridge_slave isolated on",
		} {
			ip(t, damage)
			apply(t, h, want, nil, false, true)
			apply(t, h, want, nil, true, false)
			check(damage, "eipnet endpoint aaaaaaaaaaa12345")
		}
		if err := h.handle.LinkSetHairpin(link(t, h, "eipvaaaaaaaaaaa"), false); err != nil {
			t.Fatal(err)
		}
		for _, alias := range []string{"", "web"} {
			if err := h.handle.LinkSetAlias(link(t, h, "eipvaaaaaaaaaaa"), alias); err != nil {
				t.Fatal(err)
			}
			apply(t, h, want, nil, true, true)
			apply(t, h, want, nil, true, false)
			check("the loss of alias and hairpin", "eipnet endpoint aaaaaaaaaaa")
		}

		ip(t, "link add eth0 type veth peer name far", "link add docker0 type bridge")
		want.Veths = []plan.VethPort{{Name: "eipvaaaaaaaaaaa", Bridge: "docker0"}, {Name: "eth0", Bridge: "eip_bridge"}}
		changed, err := h.Apply(t.Context(), want, nil, true)
		if changed || err == nil || !strings.Contains(err.Error(), "there is no bridge docker0 of ours") || !strings.Contains(err.Error(), "eth0: the name is in use") {
			t.Errorf("Apply: changed %v, error %v", changed, err)
		}
	})
}

func TestAddVethIsIdempotent(t *testing.T) {
	box := netnstest.New(t)
	netnstest.Run(t, func() {
		h, _ := open(t, Options{})
		apply(t, h, plan.Links{Bridges: []plan.BridgeLink{{Name: "eip_bridge", NetworkID: "abc"}}}, nil, true, true)
		v := Veth{Host: "eip0a1b2c3d", Peer: "eipp0a1b2c3d", Bridge: "eip_bridge", MAC: "02:42:ac:13:00:64", MTU: 1400, Alias: "eipnet endpoint xyz"}
		check := func() {
			t.Helper()
			l := link(t, h, v.Host)
			at := l.Attrs()
			if !hairpin(t, h, v.Host) {
				t.Error("the host end is not in hairpin mode")
			}
			if l.Type() != "veth" || at.MasterIndex != link(t, h, "eip_bridge").Attrs().Index || at.MTU != 1400 || at.Alias != v.Alias || at.RawFlags&1 == 0 {
				t.Errorf("host end: %s %+v", l.Type(), at)
			}
		}
		for range 2 {
			if err := h.AddVeth(t.Context(), v); err != nil {
				t.Fatal(err)
			}
			check()
		}
		peer := link(t, h, v.Peer).Attrs()
		if peer.HardwareAddr.String() != v.MAC || peer.MTU != 1400 || peer.RawFlags&1 != 0 {
			t.Errorf("peer: MAC %v, MTU %d, flags %x", peer.HardwareAddr, peer.MTU, peer.RawFlags)
		}
		ip(t, "link set "+v.Peer+" netns "+netnsPath(box), "link set "+v.Host+" nomaster down")
		if err := h.AddVeth(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		check()
		if err := h.handle.LinkSetHairpin(link(t, h, v.Host), false); err != nil {
			t.Fatal(err)
		}
		if err := h.AddVeth(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		check()
		if got := observe(t, h).NICs; len(got) > 0 {
			t.Errorf("NICs: %v", names(got))
		}

		other := v
		other.Alias = "eipnet endpoint other"
		if err := h.AddVeth(t.Context(), other); err == nil || !strings.Contains(err.Error(), "in use by another link") {
			t.Errorf("AddVeth with another alias: %v", err)
		}
		other.Bridge = "eip_nowhere"
		if err := h.AddVeth(t.Context(), other); err == nil {
			t.Error("AddVeth on a bridge that is not there: no error")
		}
		for range 2 {
			if err := h.DeleteLink(t.Context(), v.Host); err != nil {
				t.Errorf("DeleteLink: %v", err)
			}
		}
		box.Do(func() {
			if got := ip(t, "link show type veth"); got != "" {
				t.Errorf("the peer is left:\n%s", got)
			}
		})
	})
}

func TestDeleteLinkRefusesForeign(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add eth0 type veth peer name far", "link add eip_docker type bridge", "link add veth1 type veth peer name veth2", "link property add dev veth1 altname eip-alt")
		h, _ := open(t, Options{})
		for _, n := range []string{"eth0", "eip_docker", "eip-alt"} {
			if err := h.DeleteLink(t.Context(), n); err == nil || !strings.Contains(err.Error(), "not ours") {
				t.Errorf("DeleteLink(%s): %v", n, err)
			}
			link(t, h, n)
		}
	})
}

// flows makes connection tracking entries.
func flows(t testing.TB, h *Host, tuples ...string) {
	t.Helper()
	for _, s := range tuples {
		f := strings.Fields(s) // protocol, source, destination, reply source, reply destination
		tuple := func(src, dst string) netlink.IPTuple {
			a, b := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
			return netlink.IPTuple{SrcIP: a.Addr().AsSlice(), SrcPort: a.Port(), DstIP: b.Addr().AsSlice(), DstPort: b.Port(), Protocol: map[string]uint8{"tcp": 6, "udp": 17}[f[0]]}
		}
		fam := model.FamilyOf(netip.MustParseAddrPort(f[1]).Addr())
		flow := &netlink.ConntrackFlow{FamilyType: uint8(family(fam)), Forward: tuple(f[1], f[2]), Reverse: tuple(f[3], f[4]), TimeOut: 300}
		if f[0] == "tcp" {
			flow.ProtoInfo = &netlink.ProtoInfoTCP{State: 3}
		}
		if err := h.handle.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(family(fam)), flow); err != nil {
			t.Fatalf("flow %s: %v", s, err)
		}
	}
}

func tracked(t testing.TB, h *Host) []string {
	t.Helper()
	var out []string
	for _, f := range model.Families {
		list, err := h.handle.ConntrackTableList(netlink.ConntrackTable, netlink.InetFamily(family(f)))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range list {
			out = append(out, netip.AddrPortFrom(addr(l.Forward.SrcIP), l.Forward.SrcPort).String()+" "+netip.AddrPortFrom(addr(l.Forward.DstIP), l.Forward.DstPort).String())
		}
	}
	slices.Sort(out)
	return out
}

func TestFlushConntrackOnlyTheGivenAddresses(t *testing.T) {
	netnstest.Run(t, func() {
		h, _ := open(t, Options{})
		flows(t, h,
			"tcp 172.19.0.100:1000 203.0.113.5:80 203.0.113.5:80 172.31.0.14:1000",       // out by SNAT
			"tcp 203.0.113.6:2000 172.31.0.14:8090 172.19.0.100:8080 203.0.113.6:2000",   // in by DNAT
			"udp [fd19::100]:1000 [2001:db8::5]:53 [2001:db8::5]:53 [2001:db8::14]:1000", //
			"tcp 172.19.0.101:1000 203.0.113.5:80 203.0.113.5:80 172.31.0.14:1001",       // a neighbour
			"tcp 10.0.0.1:1000 172.19.0.100:80 10.0.0.9:80 10.0.0.1:1000",                // to the address, answered by another
			"udp [fd19::101]:1000 [2001:db8::5]:53 [2001:db8::5]:53 [2001:db8::14]:1001",
		)
		n, err := h.FlushConntrack(t.Context(), []netip.Addr{addrOf("172.19.0.100"), addrOf("fd19::100")})
		if err != nil || n != 3 {
			t.Errorf("FlushConntrack: %d, %v; want 3", n, err)
		}
		want := []string{"10.0.0.1:1000 172.19.0.100:80", "172.19.0.101:1000 203.0.113.5:80", "[fd19::101]:1000 [2001:db8::5]:53"}
		if diff := cmp.Diff(want, tracked(t, h)); diff != "" {
			t.Errorf("entries (-want +got):\n%s", diff)
		}
		if n, err := h.FlushConntrack(t.Context(), nil); n != 0 || err != nil {
			t.Errorf("FlushConntrack of nothing: %d, %v", n, err)
		}
	})
}

func TestFlushTranslated(t *testing.T) {
	netnstest.Run(t, func() {
		h, _ := open(t, Options{})
		flows(t, h,
			"tcp 172.19.0.100:1000 203.0.113.5:80 203.0.113.5:80 172.31.0.14:1000",     // out by SNAT
			"tcp 172.19.0.100:1001 203.0.113.5:80 203.0.113.5:80 172.31.0.8:1001",      // with another address
			"tcp 172.19.0.100:1002 172.19.0.101:80 172.19.0.101:80 172.19.0.100:1002",  // to a neighbour
			"tcp 203.0.113.6:2000 172.31.0.14:8090 172.19.0.100:8080 203.0.113.6:2000", // in by DNAT
			"udp [fd19::100]:1000 [2001:db8::5]:53 [2001:db8::5]:53 [2001:db8::14]:1000",
		)
		var asked []string
		n, err := h.FlushTranslated(t.Context(), func(from, to, as netip.Addr) bool {
			asked = append(asked, from.String()+" "+to.String()+" "+as.String())
			return as == addrOf("172.31.0.8")
		})
		if err != nil || n != 1 {
			t.Errorf("FlushTranslated: %d, %v; want 1", n, err)
		}
		slices.Sort(asked)
		want := []string{
			"172.19.0.100 172.19.0.101 172.19.0.100", "172.19.0.100 203.0.113.5 172.31.0.14", "172.19.0.100 203.0.113.5 172.31.0.8",
			"203.0.113.6 172.31.0.14 203.0.113.6", "fd19::100 2001:db8::5 2001:db8::14",
		}
		if diff := cmp.Diff(want, asked); diff != "" {
			t.Errorf("asked about (-want +got):\n%s", diff)
		}
		if left := tracked(t, h); len(left) != 4 || slices.Contains(left, "172.19.0.100:1001 203.0.113.5:80") {
			t.Errorf("left: %v", left)
		}
	})
}

func TestFlushConntrackPorts(t *testing.T) {
	netnstest.Run(t, func() {
		h, _ := open(t, Options{})
		flows(t, h,
			"udp 203.0.113.6:2000 172.31.0.14:53 172.31.0.14:53 203.0.113.6:2000",
			"udp 203.0.113.6:2000 172.31.0.8:53 172.31.0.8:53 203.0.113.6:2000",
			"udp 203.0.113.6:2000 172.31.0.8:514 172.31.0.8:514 203.0.113.6:2000",
			"tcp 203.0.113.6:2000 172.31.0.14:53 172.31.0.14:53 203.0.113.6:2000",
			"udp [2001:db8::6]:2000 [2001:db8::14]:514 [2001:db8::14]:514 [2001:db8::6]:2000",
		)
		n, err := h.FlushConntrackPorts(t.Context(), []netip.AddrPort{netip.MustParseAddrPort("172.31.0.14:53"), netip.MustParseAddrPort("[2001:db8::14]:514")})
		if err != nil || n != 2 {
			t.Errorf("FlushConntrackPorts: %d, %v; want 2", n, err)
		}
		want := []string{"203.0.113.6:2000 172.31.0.14:53", "203.0.113.6:2000 172.31.0.8:514", "203.0.113.6:2000 172.31.0.8:53"}
		if diff := cmp.Diff(want, tracked(t, h)); diff != "" {
			t.Errorf("entries (-want +got):\n%s", diff)
		}
	})
}

func TestCloseTwice(t *testing.T) {
	netnstest.Run(t, func() {
		h, _ := open(t, Options{}) // closes once more
		observe(t, h)
		h.Close()
		h.Close()
	})
}

func TestMemoryOriginals(t *testing.T) {
	var m MemoryOriginals
	for _, k := range []string{"b", "a", "c"} {
		if err := m.SetOriginal(k, k+"!"); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.DeleteOriginal("c"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, m.OriginalKeys()); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if v, ok := m.Original("a"); v != "a!" || !ok {
		t.Errorf("Original(a) = %q, %v", v, ok)
	}
	if _, ok := m.Original("c"); ok {
		t.Error("c is still there")
	}
}

func BenchmarkVeth(b *testing.B) {
	netnstest.Run(b, func() {
		h, _ := open(b, Options{})
		apply(b, h, plan.Links{Bridges: []plan.BridgeLink{{Name: "eip_bridge", NetworkID: "abc"}}}, nil, true, true)
		v := Veth{Host: "eip0", Peer: "eipp0", Bridge: "eip_bridge", Alias: "eipnet endpoint xyz"}
		for b.Loop() {
			if err := h.AddVeth(b.Context(), v); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := h.DeleteLink(b.Context(), v.Host); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}

func BenchmarkObserve(b *testing.B) {
	host, _ := twoNICs(b)
	host.Do(func() {
		h, _ := open(b, Options{})
		ip(b, "route add default via 172.31.0.1 dev eth0")
		for b.Loop() {
			observe(b, h, "eth0", "eth1")
		}
	})
}

func BenchmarkApplyUnchanged(b *testing.B) {
	netnstest.Run(b, func() {
		h, _ := open(b, Options{})
		l := plan.Links{Null: true, Bridges: []plan.BridgeLink{{Name: "eip_bridge", NetworkID: "abc", Addrs: prefixes("172.19.0.1/16")}}}
		s := []plan.Sysctl{{Path: ipForward, From: []string{"0"}, Value: "1"}}
		apply(b, h, l, s, true, true)
		for b.Loop() {
			apply(b, h, l, s, true, false)
		}
	})
}
