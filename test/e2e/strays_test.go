package e2e

import (
	be "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/test/lab"
)

// strays sends what belongs to no connection, comes in pieces, is an error, or
// is IPv6 where there is none. What leaves, leaves by the pin.
func (g *gang) strays(t *testing.T) {
	way := map[string]string{pinned: "eth2", unpinned: "eth0", held: ""}
	// What of them is counted, by whom.
	reasons := map[string][]string{pinned: {"guard_invalid"}, unpinned: {"guard_invalid"}, held: {"refused"}}
	for _, who := range []string{pinned, unpinned, held} {
		before, forged := g.counted(t, reasons[who]...), g.counted(t, "forged", "spoofed")
		g.r.resetSniffers()
		g.segments(who)
		g.pieces(who, way[who])
		g.errors(who)
		g.sixth(t, who)
		if who == unpinned && g.watched() {
			continue // as without eipnet: Docker masquerades, and not always
		}
		g.onlyAs(who, way[who])
		g.r.clean()
		g.r.eventually("what "+g.name(who)+" sent to be counted", func() error {
			switch {
			case g.counted(t, reasons[who]...) == before:
				return fmt.Errorf("nothing was as %s", reasons[who])
			case g.counted(t, "forged", "spoofed") == forged:
				return errors.New("IPv6, which it has not, was not")
			}
			return nil
		})
	}
}

// segments of connections that nobody knows.
func (g *gang) segments(who string) {
	g.r.t.Helper()
	var packets [][]byte
	for i, flags := range []byte{lab.FlagFIN | lab.FlagACK, lab.FlagRST, lab.FlagRST | lab.FlagACK, lab.FlagACK, lab.FlagFIN | lab.FlagSYN, 0} {
		packets = append(packets, ip4(g.addr(who), lab.SiteAddr, unix.IPPROTO_TCP, tcp(uint16(9000+i), forged, flags)))
	}
	g.r.send(g.name(who), packets...)
}

// pieces: datagrams and pings that are too long for one packet, and the last
// part of one whose first part never comes.
func (g *gang) pieces(who, nic string) {
	g.r.t.Helper()
	long := strings.Repeat("0123456789", 400)
	out, err := g.r.exec(g.name(who), "udp", fmt.Sprintf("%v:7", lab.SiteAddr), long)
	switch {
	case nic == "" && err == nil:
		g.r.t.Errorf("%s is held, and its long datagram was answered", g.name(who))
	case nic != "" && (err != nil || !strings.HasPrefix(out, g.r.EIP(nic).String()+":") || !strings.HasSuffix(out, long)):
		g.r.t.Errorf("a long datagram of %s was answered with %d bytes, %.40q, %v", g.name(who), len(out), out, err)
	}
	err = g.r.inContainer(g.name(who), func() error {
		c, err := net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: lab.SiteAddr.AsSlice()})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(echoRequest(long))
		return err
	})
	if err != nil && (nic != "" || !errors.Is(err, unix.EHOSTUNREACH)) {
		g.r.t.Errorf("a long ping of %s: %v", g.name(who), err)
	}
	g.r.send(g.name(who), fragment(ip4(g.addr(who), lab.SiteAddr, unix.IPPROTO_UDP, []byte("the last part of nothing"))))
}

// errors about connections that nobody knows.
func (g *gang) errors(who string) {
	g.r.t.Helper()
	quoted := ip4(lab.SiteAddr, g.addr(who), unix.IPPROTO_UDP, udp(7, 5353, "nobody sent this"))
	g.r.send(g.name(who), ip4(g.addr(who), lab.SiteAddr, unix.IPPROTO_ICMP, unreachable(quoted)))
}

// sixth: a container without IPv6 gives itself an address of the cloud's subnet.
func (g *gang) sixth(t *testing.T, who string) {
	t.Helper()
	port := g.nextPort()
	gateway, own := g.gatewayMAC(), g.mac(who)
	var frames [][]byte
	for _, src := range []netip.Addr{netip.MustParseAddr("2001:db8:31::99"), g.r.Addr6("eth1"), netip.MustParseAddr("fd00::99")} {
		packet := ip6(src, lab.SiteAddr6, unix.IPPROTO_UDP, udp6(src, lab.SiteAddr6, 7777, port, "IPv6"))
		frames = append(frames, ether(gateway, own, unix.ETH_P_IPV6, packet))
	}
	g.r.sendFrames(g.name(who), frames...)
	if who == unpinned && g.watched() {
		return
	}
	if err := g.r.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range g.r.NICs() {
		if seen := g.r.Sniffer(n.Name).Seen(lab.To(unix.IPPROTO_UDP, lab.SiteAddr6)); seen > 0 {
			t.Errorf("%s has no IPv6, and yet sent %d packets by %s", g.name(who), seen, n.Name)
		}
	}
}

// onlyAs fails if anything but the neighbours' sessions went to the site by
// another NIC than this one, or with another source than its address.
func (g *gang) onlyAs(who, nic string) {
	g.r.t.Helper()
	if err := g.r.Settle(g.r.t.Context()); err != nil {
		g.r.t.Fatal(err)
	}
	for _, n := range g.r.NICs() {
		for _, f := range g.r.Sniffer(n.Name).Flows() {
			ofSession := f.Proto == lab.ProtoTCP && n.Name == "eth1" && f.SPort/100 >= 81 && f.SPort/100 <= 83
			if f.Dst == lab.SiteAddr && !ofSession && (n.Name != nic || f.Src != n.Addr.Addr()) {
				g.r.t.Errorf("%s, which leaves by %q: %v", g.name(who), nic, f)
			}
		}
	}
}

func echoRequest(data string) []byte {
	b := append([]byte{8, 0, 0, 0, 0x65, 0x69, 0, 1}, data...)
	be.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// noAddress6: on a stock network with IPv6, a container that is pinned to a NIC
// without an IPv6 address sends no IPv6, and goes on with IPv4.
func (r *rig) noAddress6(t *testing.T) {
	site6, site4 := fmt.Sprintf("[%v]:7", lab.SiteAddr6), fmt.Sprintf("%v:7", lab.SiteAddr)
	leaves := func(name, site string, as netip.Addr) {
		t.Helper()
		r.eventually(fmt.Sprintf("%s to leave as %v", name, as), func() error {
			out, err := r.exec(name, "udp", site, "hi")
			if from, perr := netip.ParseAddrPort(strings.TrimSuffix(out, " hi")); err == nil && (perr != nil || from.Addr() != as) {
				err = fmt.Errorf("it left as %q", out)
			}
			return err
		})
	}
	r.start(t, "dual-pinned", "--network", "dual", "--label", "eip.nic=eth1")
	r.start(t, "dual-free", "--network", "dual")
	leaves("dual-pinned", site6, r.Addr6("eth1"))
	goesOn := func() {
		t.Helper()
		if engine() == pageEngine { // engines up to 26 masquerade no IPv6 by default
			leaves("dual-free", site6, r.Addr6("eth0"))
		}
	}
	goesOn()
	r.on("ip", "-6", "addr", "del", r.NIC("eth1").Addr6.String(), "dev", "eth1")
	r.problem("dual-pinned", "IPv6 is held", "eth1")
	r.resetSniffers()
	if out, err := r.exec("dual-pinned", "udp", site6, "hi"); err == nil {
		t.Errorf("eth1 has no IPv6 address, and yet dual-pinned left as %q", out)
	}
	if err := r.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.NICs() {
		if seen := r.Sniffer(n.Name).Seen(lab.To(lab.ProtoUDP, lab.SiteAddr6)); seen > 0 {
			t.Errorf("%d IPv6 packets left by %s", seen, n.Name)
		}
	}
	leaves("dual-pinned", site4, r.EIP("eth1"))
	goesOn()
	r.on("ip", "-6", "addr", "add", r.NIC("eth1").Addr6.String(), "dev", "eth1", "nodad")
	leaves("dual-pinned", site6, r.Addr6("eth1"))
	r.clean()
}
