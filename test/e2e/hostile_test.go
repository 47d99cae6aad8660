package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// gang is a network with a neighbour that minds its own business on eth1, and
// three that do not: pinned to eth2, unpinned, and held.
type gang struct {
	r        *rig
	network  string
	bridge   string
	subnet   string // its first two bytes
	port     int    // of the neighbour's line echo, on eth1's address
	stock    bool
	strict   bool
	attempts uint16 // so far: each has a port of its own at the site
	macs     map[string]net.HardwareAddr
}

const (
	neighbour = "101"
	pinned    = "102"
	unpinned  = "103"
	held      = "104"
)

func (g *gang) name(who string) string { return g.network + "-" + who }

func (g *gang) addr(last string) netip.Addr { return netip.MustParseAddr(g.subnet + ".0." + last) }

func (g *gang) mac(who string) net.HardwareAddr {
	g.r.t.Helper()
	if g.macs[who] == nil {
		g.macs[who] = g.macOf(who)
	}
	return g.macs[who]
}

func (g *gang) macOf(who string) net.HardwareAddr {
	g.r.t.Helper()
	return g.hw(g.r.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.MacAddress}}{{end}}", g.name(who)))
}

func (g *gang) gatewayMAC() net.HardwareAddr {
	g.r.t.Helper()
	return g.hw(strings.TrimSpace(g.r.on("cat", "/sys/class/net/"+g.bridge+"/address")))
}

func (g *gang) hw(text string) net.HardwareAddr {
	g.r.t.Helper()
	mac, err := net.ParseMAC(text)
	if err != nil {
		g.r.t.Fatal(err)
	}
	return mac
}

// nextPort is a port at the site that nobody has sent to.
func (g *gang) nextPort() uint16 {
	g.attempts++
	return forged + g.attempts
}

// watched: neither lock is for what nobody asked about.
func (g *gang) watched() bool { return g.stock && !g.strict }

// gangs makes the networks with their containers.
func gangs(t *testing.T, r *rig) []*gang {
	t.Helper()
	all := []*gang{
		{r: r, network: network, bridge: bridge, subnet: "172.19", port: 8191},
		{r: r, network: "strict", bridge: "br-strict", subnet: "172.20", port: 8291, stock: true, strict: true},
		{r: r, network: "stock", bridge: "br-stock", subnet: "172.21", port: 8391, stock: true},
	}
	for i, g := range all {
		g.attempts, g.macs = uint16(i*100), make(map[string]net.HardwareAddr)
		args := []string{"network", "create", "--subnet", g.subnet + ".0.0/16", "-o", "com.docker.network.bridge.name=" + g.bridge}
		switch {
		case !g.stock:
			args = append(args, "-d", "eipnet")
		case g.strict:
			args = append(args, "--label", "eip.strict=true")
		}
		r.docker(append(args, g.network)...)
		for who, label := range map[string]string{neighbour: "eip.nic=eth1", pinned: "eip.nic=eth2", unpinned: "a=b", held: "eip.ip=" + extra.String()} {
			args := []string{"run", "-d", "--name", g.name(who), "--network", g.network, "--ip", g.addr(who).String(), "--label", label, "--cap-add", "NET_ADMIN"}
			if who == neighbour {
				args = append(args, "-p", fmt.Sprintf("%v:%d:8081", r.Addr("eth1"), g.port))
			}
			r.docker(append(args, lab.Image)...)
		}
	}
	r.on("ip", "addr", "del", extra.String()+"/32", "dev", "eth2")
	for _, g := range all {
		r.awaitState(g.name(pinned), plan.StatePinned)
		r.awaitState(g.name(held), plan.StateBlocked)
	}
	return all
}

// extra is an address of eth2 that is taken away.
var extra = netip.MustParseAddr("172.31.0.77")

func hostileLab() lab.Config {
	return lab.Config{Shape: lab.OneSubnet, ExtraAddrs: map[string][]netip.Prefix{"eth2": {netip.PrefixFrom(extra, 32)}}}
}

// awaitState waits until all endpoints of a container are in this state.
func (r *rig) awaitState(container string, want plan.State) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("%s to be %s", container, want), func() error {
		s, err := r.status()
		if err != nil {
			return err
		}
		err = errors.New("status does not list it")
		for _, e := range s.Endpoints {
			if e.Container != container {
				continue
			}
			if e.State != want {
				return fmt.Errorf("it is %s", e.State)
			}
			err = nil
		}
		return err
	})
}

// TestHostile: containers with NET_ADMIN and NET_RAW, pinned, unpinned and held,
// on driver, strict and other stock networks, do what they can. Nothing leaves
// but by a pin, and the neighbours go on.
func TestHostile(t *testing.T) {
	r := up(t, hostileLab())
	// With it Docker switches IPv6 forwarding on, which makes IPv6 a way out for all.
	r.docker("network", "create", "--ipv6", "--subnet", "172.25.0.0/16", "--subnet", "fd00:25::/64", "dual")
	all := gangs(t, r)
	var sessions []*session
	for _, g := range all {
		sessions = append(sessions, openSession(t, "to the neighbour on "+g.network, r.Site, fmt.Sprintf("%v:%d", r.EIP("eth1"), g.port)))
	}
	for _, g := range all {
		t.Run("strays on "+g.network, func(t *testing.T) { g.strays(t) })
		t.Run("spoofing on "+g.network, func(t *testing.T) { g.spoof(t) })
		for _, s := range sessions {
			s.goesOn(t)
		}
	}
	t.Run("no IPv6 address", r.noAddress6)
	out, err := r.Host.Run(t.Context(), "eipnet", "status")
	if out == "" {
		t.Fatal(err)
	}
	for _, reason := range []string{"spoofed", "guard_invalid", "refused"} {
		if !strings.Contains(out, reason+" ") {
			t.Errorf("eipnet status does not count %s:\n%s", reason, out)
		}
	}
}

// attempt is something that must not leave the host.
type attempt struct {
	what  string
	frame []byte
	port  uint16 // at the site; 0: it goes nowhere
	// unasked: on a stock network that is not strict nobody looks at an unpinned
	// container's, as it is nobody's business.
	unasked bool
}

func (g *gang) spoof(t *testing.T) {
	gateway := g.gatewayMAC()
	for _, who := range []string{pinned, unpinned, held} {
		own, victim := g.mac(who), g.mac(neighbour)
		packet := func(what string, mac net.HardwareAddr, src string, unasked bool) attempt {
			port := g.nextPort()
			return attempt{what, ether(gateway, mac, unix.ETH_P_IP, ip4(netip.MustParseAddr(src), lab.SiteAddr, 17, udp(7777, port, what))), port, unasked}
		}
		other := unpinned
		if who == unpinned {
			other = held
		}
		attempts := []attempt{
			packet("the neighbour's address", own, g.addr(neighbour).String(), false),
			packet("the neighbour's MAC", victim, g.addr(who).String(), false),
			packet("the neighbour's MAC and address", victim, g.addr(neighbour).String(), false),
			packet("the address of "+other, own, g.addr(other).String(), false),
			{what: "ARP claim", frame: ether(gateway, own, unix.ETH_P_ARP, arpClaim(own, g.addr(neighbour)))},
			{what: "ARP claim to all", frame: ether(net.HardwareAddr{255, 255, 255, 255, 255, 255}, own, unix.ETH_P_ARP, arpClaim(own, g.addr(neighbour)))},
			packet("an address of nobody", own, g.addr("200").String(), true),
			packet("an address from elsewhere", own, "10.9.9.9", true),
			packet("the host's address", own, g.r.Addr("eth1").String(), true),
		}
		g.try(t, who, attempts)
		g.secondAddress(t, who)
	}
	g.honest(t)
}

// try sends the frames, and checks that nothing of them leaves, and that it is counted.
func (g *gang) try(t *testing.T, who string, attempts []attempt) {
	t.Helper()
	before := g.counted(t)
	g.r.resetSniffers()
	what := make(map[uint16]string)
	var frames [][]byte
	for _, a := range attempts {
		if a.unasked && who == unpinned && g.watched() {
			continue
		}
		frames = append(frames, a.frame)
		if a.port != 0 {
			what[a.port] = a.what
		}
	}
	g.r.sendFrames(g.name(who), frames...)
	g.r.nothing(g.name(who)+" sends with what is not its own", func(p lab.Packet) bool { return what[p.DPort] != "" })
	g.r.clean()
	// The host drops its own address as a source by itself.
	g.r.eventually("what "+g.name(who)+" sent to be counted", func() error {
		if got := g.counted(t) - before; got+1 < uint64(len(frames)) {
			return fmt.Errorf("%d of %d frames were", got, len(frames))
		}
		return nil
	})
}

// secondAddress gives the container one more address, as a program in it with
// NET_ADMIN can, and connects from there.
func (g *gang) secondAddress(t *testing.T, who string) {
	t.Helper()
	if who == unpinned && g.watched() {
		return // its own business
	}
	second, port := g.addr("2"+who[1:]), g.nextPort()
	g.r.resetSniffers()
	err := g.r.inContainer(g.name(who), func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: second.AsSlice(), Mask: net.CIDRMask(16, 32)}}); err != nil {
			return err
		}
		c, err := net.DialUDP("udp4", &net.UDPAddr{IP: second.AsSlice()}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(lab.SiteAddr, port)))
		if err != nil {
			return err
		}
		defer c.Close()
		for range 3 {
			_, _ = c.Write([]byte("from a second address")) // a refusal may have come
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	g.r.nothing(g.name(who)+" sends from a second address", func(p lab.Packet) bool { return p.DPort == port })
	g.r.clean()
}

// honest shows that frames sent in this way do leave, where they may.
func (g *gang) honest(t *testing.T) {
	t.Helper()
	gateway := g.gatewayMAC()
	for who, nic := range map[string]string{neighbour: "eth1", pinned: "eth2", unpinned: "eth0"} {
		port := g.nextPort()
		g.r.sendFrames(g.name(who), ether(gateway, g.mac(who), unix.ETH_P_IP, ip4(g.addr(who), lab.SiteAddr, 17, udp(7777, port, "honest"))))
		g.r.eventually(fmt.Sprintf("what %s sends honestly to leave by %s", g.name(who), nic), func() error {
			for _, n := range g.r.NICs() {
				seen := g.r.Sniffer(n.Name).Seen(func(p lab.Packet) bool { return p.DPort == port && p.Src == n.Addr.Addr() })
				if (seen > 0) != (n.Name == nic) {
					return fmt.Errorf("%d left by %s", seen, n.Name)
				}
			}
			return nil
		})
	}
}

// counted is how many packets were dropped or refused, for these reasons or for any, as eipnet status tells.
func (g *gang) counted(t *testing.T, reasons ...string) uint64 {
	t.Helper()
	s, err := g.r.status()
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	for reason, c := range s.Counters {
		if len(reasons) == 0 || slices.Contains(reasons, reason) {
			n += c.Packets
		}
	}
	return n
}
