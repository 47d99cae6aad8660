package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

const subnet6 = "fd00:19::/64"

// siteIP6 is siteIP over IPv6.
var siteIP6 = fmt.Sprintf("http://[%v]/ip", lab.SiteAddr6)

// TestDualStack: IPv6 on a network of eipnet's own, on a host that has its IPv6
// default routes from router advertisements, as in a cloud.
func TestDualStack(t *testing.T) {
	second := netip.MustParsePrefix("2001:db8:31::15/64")
	r := prepare(t, lab.Config{Shape: lab.OneSubnet, ExtraAddrs: map[string][]netip.Prefix{"eth1": {second}}})
	r.on("ip", "-6", "route", "del", "default")
	r.advised()
	r.serve()
	if got := r.switches6(); got != "0 1 1 1" {
		t.Errorf("before any network: forwarding and accept_ra are %s", got)
	}
	r.createNetwork("--ipv6", "--subnet", subnet6)
	if got := r.switches6(); got != "1 2 2 2" {
		t.Errorf("with a network: forwarding and accept_ra are %s", got)
	}
	r.hostIsOn6("with a network")

	r.run(t, "app0", "--ip6", "fd00:19::100", "--label", "eip.nic=eth0", "-p", "8090:8080")
	r.run(t, "app1", "--ip6", "fd00:19::101", "--label", "eip.nic=eth1", "-p", "8090:8080", "-p", "8090:8080/udp")
	r.run(t, "free", "--ip6", "fd00:19::102", "-p", "8093:8080")
	t.Run("in", r.in6)
	t.Run("out", r.out6)
	t.Run("inside", r.inside6)
	t.Run("selectors", func(t *testing.T) { r.selectors6(t, second.Addr()) })
	t.Run("a NIC without IPv6", r.nicWithout6)
	t.Run("a gateway of the same subnet", r.static6)
	t.Run("IPv6 alone", r.only6)
	t.Run("forged", r.forged6)
	t.Run("a stock network", r.watch6)
	r.hostIsOn6("at the end")
}

// advised has the routers speak until eth0 has a default route from them.
func (r *rig) advised() {
	r.t.Helper()
	r.eventually("a default route from an advertisement", func() error {
		if err := r.Advertise(); err != nil {
			return err
		}
		if routes := r.on("ip", "-6", "route"); !strings.Contains(routes, "default via fe80::") || !strings.Contains(routes, "dev eth0 proto ra") {
			return fmt.Errorf("routes: %s", routes)
		}
		return nil
	})
}

// switches6 are the host's IPv6 forwarding, and accept_ra of its NICs.
func (r *rig) switches6() string {
	r.t.Helper()
	args := []string{"-n", "net.ipv6.conf.all.forwarding"}
	for _, n := range r.NICs() {
		args = append(args, "net.ipv6.conf."+n.Name+".accept_ra")
	}
	return strings.Join(strings.Fields(r.on("sysctl", args...)), " ")
}

// hostIsOn6 checks that the host's own IPv6 works by the routers' advice, and that new advice is taken.
func (r *rig) hostIsOn6(when string) {
	r.t.Helper()
	if routes := r.on("ip", "-6", "route"); !strings.Contains(routes, "default via fe80::") {
		r.t.Errorf("%s: the host has no default route from its routers: %s", when, routes)
	}
	if got, err := r.HostGet(r.t.Context(), netip.Addr{}, siteIP6); err != nil || r.nicOf(got) == "" {
		r.t.Errorf("%s: the host reaches the site as %q, %v", when, got, err)
	}
	r.on("ip", "-6", "route", "flush", "proto", "ra")
	r.advised()
}

// nicOf returns the NIC that has the address; empty: none.
func (r *rig) nicOf(addr string) string {
	for _, n := range r.NICs() {
		if addr == n.Addr6.Addr().String() || addr == n.EIP.String() {
			return n.Name
		}
	}
	return ""
}

func (r *rig) url6(nic string, port int, path string) string {
	return fmt.Sprintf("http://[%v]:%d/%s", r.Addr6(nic), port, path)
}

// leaves6 waits until the site sees the container come from the IPv6 address.
func (r *rig) leaves6(name, want string) {
	r.t.Helper()
	r.eventually(name+" to leave as "+want, func() error { return r.left(name, siteIP6, want) })
}

func (r *rig) in6(t *testing.T) {
	for _, nic := range []string{"eth0", "eth1"} {
		r.resetSniffers()
		r.sees(t, r.url6(nic, 8090, "remote"), lab.SiteAddr6)
		r.connectedBy(nic)
		r.answers(r.url(nic, 8090), r.EIP(nic).String()) // and IPv4 is what it was
	}
	got, err := r.udpFromSite(fmt.Sprintf("[%v]:8090", r.Addr6("eth1")))
	if err != nil || !strings.HasPrefix(got, "["+lab.SiteAddr6.String()+"]:") {
		t.Errorf("UDP: the container answered %q, %v", got, err)
	}
	for _, nic := range []string{"eth0", "eth1", "eth2"} { // unpinned: published everywhere
		r.resetSniffers()
		r.sees(t, r.url6(nic, 8093, "remote"), lab.SiteAddr6)
		r.connectedBy(nic)
	}
	r.clean()
}

// sees checks which client a container sees when the site asks for URL.
func (r *rig) sees(t *testing.T, url string, want netip.Addr) {
	t.Helper()
	r.eventually(url+" to answer", func() error {
		got, err := r.SiteGet(r.t.Context(), url)
		if err != nil {
			return err
		}
		if from, err := netip.ParseAddrPort(got); err != nil || from.Addr() != want {
			return fmt.Errorf("the container saw %q, want %v", got, want)
		}
		return nil
	})
}

// connectedBy checks that new connections with the site, whoever opened them, were by that NIC and no
// other. It looks at how they begin: the last packet of an earlier one may come at any time.
func (r *rig) connectedBy(nic string) {
	r.t.Helper()
	if err := r.Settle(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	for _, n := range r.NICs() {
		seen := r.Sniffer(n.Name).Seen(func(p lab.Packet) bool {
			return p.Dst == lab.SiteAddr6 && p.Proto == lab.ProtoTCP && p.Flags&lab.FlagSYN != 0
		})
		if (n.Name == nic) != (seen > 0) {
			r.t.Errorf("%d connections with the site began by %s, want all by %s", seen, n.Name, nic)
		}
	}
}

func (r *rig) out6(t *testing.T) {
	r.resetSniffers()
	r.leaves6("app1", r.Addr6("eth1").String())
	if out, err := r.exec("app1", "udp", fmt.Sprintf("[%v]:7", lab.SiteAddr6), "hello"); err != nil || !strings.HasPrefix(out, "["+r.Addr6("eth1").String()+"]:") {
		t.Errorf("UDP: %q, %v", out, err)
	}
	if out, err := r.exec("app1", "ping", lab.SiteAddr6.String()); err != nil {
		t.Errorf("ICMPv6: %q, %v", out, err)
	}
	r.connectedBy("eth1")
	r.onlyBy("eth1", lab.ProtoUDP, lab.SiteAddr6)
	r.onlyBy("eth1", lab.ProtoICMPv6, lab.SiteAddr6)
	r.leaves6("app0", r.Addr6("eth0").String())
	// By whichever NIC the host's routing says, all of which have a router.
	if got, err := r.exec("free", "get", siteIP6); err != nil || r.nicOf(got) == "" {
		t.Errorf("unpinned: left as %q, %v", got, err)
	}
	r.clean()
	for _, n := range r.well().NICs {
		if !n.Gateway6.IsLinkLocalUnicast() {
			t.Errorf("%s's IPv6 gateway is %v, want the router's link-local address", n.Name, n.Gateway6)
		}
	}
}

// Siblings by address, published ports by hairpin, and the host.
func (r *rig) inside6(t *testing.T) {
	for url, want := range map[string]string{
		"http://[fd00:19::101]:8080/remote": "fd00:19::100",
		r.url6("eth0", 8090, "remote"):      "fd00:19::1", // its own
		r.url6("eth1", 8090, "remote"):      "fd00:19::1", // the sibling's
	} {
		if got, err := r.exec("app0", "get", url); err != nil || !strings.HasPrefix(got, "["+want+"]:") {
			t.Errorf("app0 → %s: the container saw %q, %v; want %s", url, got, err, want)
		}
	}
	for _, url := range []string{"http://[fd00:19::101]:8080/hello", r.url6("eth1", 8090, "hello"), r.url6("eth2", 8093, "hello")} {
		if got, err := r.HostGet(t.Context(), netip.Addr{}, url); err != nil || got != "hello" {
			t.Errorf("the host → %s: %q, %v", url, got, err)
		}
	}
	r.clean()
}

func (r *rig) selectors6(t *testing.T, second netip.Addr) {
	for name, tc := range map[string]struct {
		labels []string
		want   netip.Addr
	}{
		"ip":  {[]string{"eip.ip=" + r.Addr6("eth2").String()}, r.Addr6("eth2")},
		"ip6": {[]string{"eip.public=" + r.EIP("eth1").String(), "eip.ip6=" + second.String()}, second},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"-p", "8094:8080"}
			for _, l := range tc.labels {
				args = append(args, "--label", l)
			}
			r.run(t, "chosen", args...)
			r.leaves6("chosen", tc.want.String())
			r.sees(t, fmt.Sprintf("http://[%v]:8094/remote", tc.want), lab.SiteAddr6)
		})
	}
	r.run(t, "stranger", "--label", "eip.nic=eth1", "--label", "eip.ip6=2001:db8:31::99")
	r.problem("stranger", "IPv6 is held", "2001:db8:31::99")
	r.held6(t, "stranger")
	r.leaves(t, "stranger", r.EIP("eth1").String())
	r.clean()
}

func (r *rig) held6(t *testing.T, name string) {
	t.Helper()
	if got, err := r.exec(name, "get", siteIP6); err == nil {
		t.Errorf("%s's IPv6 is held, and yet it left as %s", name, got)
	}
}

// IPv6 is held as long as the NIC has none; IPv4 is nothing to do with it.
func (r *rig) nicWithout6(t *testing.T) {
	addr := r.NIC("eth2").Addr6.String()
	r.on("ip", "addr", "del", addr, "dev", "eth2")
	r.run(t, "half", "--label", "eip.nic=eth2", "-p", "8095:8080")
	r.leaves(t, "half", r.EIP("eth2").String())
	r.answers(r.url("eth2", 8095), r.EIP("eth2").String())
	r.held6(t, "half")
	r.problem("half", "IPv6 is held", "eth2")
	r.on("ip", "addr", "add", addr, "dev", "eth2", "nodad")
	r.leaves6("half", r.Addr6("eth2").String())
	r.sees(t, r.url6("eth2", 8095, "remote"), lab.SiteAddr6)
	r.clean()
}

// Where nobody advertises, main's gateway on another NIC serves the subnet.
func (r *rig) static6(t *testing.T) {
	r.on("ip", "-6", "route", "flush", "proto", "ra")
	r.on("ip", "-6", "route", "add", "default", "via", r.NIC("eth0").Gateway6.String(), "dev", "eth0")
	r.resetSniffers()
	r.leaves6("app1", r.Addr6("eth1").String())
	r.sees(t, r.url6("eth1", 8090, "remote"), lab.SiteAddr6)
	r.leaves6("free", r.Addr6("eth0").String())
	r.clean()
	r.on("ip", "-6", "route", "del", "default", "via", r.NIC("eth0").Gateway6.String())
	r.advised()
}

func (r *rig) only6(t *testing.T) {
	if engine() != pageEngine {
		t.Skip("Docker takes --ipv4=false from 28 on")
	}
	r.docker("network", "create", "-d", "eipnet", "--ipv4=false", "--ipv6", "--subnet", "fd00:20::/64", "only6")
	t.Cleanup(func() { r.docker("network", "rm", "only6") })
	r.start(t, "modern", "--network", "only6", "--label", "eip.nic=eth1", "-p", "8096:8080")
	r.leaves6("modern", r.Addr6("eth1").String())
	r.resetSniffers()
	r.sees(t, r.url6("eth1", 8096, "remote"), lab.SiteAddr6)
	r.connectedBy("eth1")
	if out, err := r.exec("app0", "get", "http://[fd00:20::2]:8080/hello"); err == nil {
		t.Errorf("another network's container reached it: %q", out)
	}
	r.clean()
}

// Every source that could be worth having, past both locks and each alone.
func (r *rig) forged6(t *testing.T) {
	r.run(t, "held", "--ip6", "fd00:19::103", "--label", "eip.nic=eth2", "-p", "8097:8080")
	r.sees(t, r.url6("eth2", 8097, "remote"), lab.SiteAddr6)
	r.on("ip", "addr", "del", r.NIC("eth2").Addr.String(), "dev", "eth2")
	r.on("ip", "addr", "del", r.NIC("eth2").Addr6.String(), "dev", "eth2")
	r.awaitState("held", plan.StateBlocked)
	r.forge6("both locks")
	r.held6(t, "held")
	r.kill()
	r.deleteRules()
	r.forge6("lock 2 alone")
	r.serve()
	r.kill()
	r.on("nft", "delete", "table", "inet", "eipnet")
	r.on("nft", "delete", "table", "bridge", "eipnet")
	r.forge6("lock 1 alone")
	r.serve()
	r.on("ip", "addr", "add", r.NIC("eth2").Addr.String(), "dev", "eth2")
	r.on("ip", "addr", "add", r.NIC("eth2").Addr6.String(), "dev", "eth2", "nodad")
	r.leaves6("app1", r.Addr6("eth1").String())
}

func (r *rig) forge6(stage string) {
	r.t.Helper()
	r.resetSniffers()
	for from, own := range map[string]string{"held": "", "app1": "fd00:19::101"} {
		var packets [][]byte
		for _, s := range []string{
			"fd00:19::100", "fd00:19::101", "fd00:19::102", "fd00:19::103", "fd00:19::200", "fd00:19::1",
			r.Addr6("eth0").String(), r.Addr6("eth1").String(), "2001:db8:77::7",
		} {
			src := netip.MustParseAddr(s)
			packets = append(packets, ip6(src, lab.SiteAddr6, 6, tcp(7778, forged, 0x11)), ip6(src, lab.SiteAddr6, 6, tcp(7779, forged, 0x04)))
			if s != own {
				packets = append(packets, ip6(src, lab.SiteAddr6, 17, udp6(src, lab.SiteAddr6, 7777, forged, "forged")))
			}
		}
		r.send6(from, packets...)
	}
	r.nothing(stage, isForged)
	r.clean()
}

// Docker's own network with IPv6: a label moves it as it does IPv4.
func (r *rig) watch6(t *testing.T) {
	r.docker("network", "create", "--ipv6", "--subnet", "172.30.0.0/16", "--subnet", "fd00:30::/64", "stock6")
	r.start(t, "web6", "--network", "stock6", "--label", "eip.nic=eth1", "-p", "8098:8080")
	r.start(t, "plain6", "--network", "stock6")
	r.resetSniffers()
	r.leaves6("web6", r.Addr6("eth1").String())
	r.connectedBy("eth1")
	nics, client := []string{"eth0", "eth1", "eth2"}, lab.SiteAddr6
	nat := engine() == pageEngine
	if !nat { // up to 26 Docker translates no IPv6: its proxy answers, by the NICs that the host answers by
		nics, client = []string{"eth0", "eth1"}, netip.MustParseAddr("fd00:30::1")
		// Each NIC's router has advised the host to leave by it; which it takes for the primary's answers is the host's own business.
		own := "$(ip -6 route show default dev eth0 | head -n 1 | cut -d ' ' -f 1-3) dev eth0 metric 1"
		r.on("sh", "-c", "ip -6 route add "+own)
		defer r.on("ip", "-6", "route", "del", "default", "dev", "eth0", "metric", "1")
	}
	for _, nic := range nics {
		r.resetSniffers()
		r.sees(t, r.url6(nic, 8098, "remote"), client)
		r.connectedBy(nic)
	}
	if nat { // else it leaves with its own address
		if got, err := r.exec("plain6", "get", siteIP6); err != nil || r.nicOf(got) == "" {
			t.Errorf("a neighbour that nobody asked about left as %q, %v", got, err)
		}
	}
	r.start(t, "gone6", "--network", "stock6", "--label", "eip.nic=eth9")
	r.problem("gone6", "eth9")
	r.held6(t, "gone6")
	r.send6("gone6", ip6(netip.MustParseAddr("fd00:30::2"), lab.SiteAddr6, 17, udp6(netip.MustParseAddr("fd00:30::2"), lab.SiteAddr6, 7777, forged, "forged")))
	r.nothing("with web6's address", isForged)
	r.clean()

	// Our last network goes; Docker's has come to depend on forwarding.
	r.docker("rm", "-f", "app0", "app1", "free")
	r.docker("network", "rm", network)
	r.eventually("eipnet to have forgotten its network", func() error {
		if links := r.on("ip", "-br", "link"); strings.Contains(links, bridge) {
			return errors.New(links)
		}
		return nil
	})
	if got := r.switches6(); got != "1 2 2 2" {
		t.Errorf("with a network of Docker's left: forwarding and accept_ra are %s", got)
	}
	r.leaves6("web6", r.Addr6("eth1").String())
	r.docker("rm", "-f", "web6", "plain6", "gone6")
	r.docker("network", "rm", "stock6")
	began := time.Now()
	r.eventually("the switches to be put back", func() error {
		if got := r.switches6(); got != "0 1 1 1" {
			return fmt.Errorf("after %v forwarding and accept_ra are %s", time.Since(began), got)
		}
		return nil
	})
}
