package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// forged are ports at the site to which only forged packets are sent.
const forged = 20000

// TestForged: containers with NET_RAW, some of them held, send what is not
// theirs: others' addresses, segments of no connection, and ICMP errors that
// quote others' connections. Nothing of it leaves the host, with both locks and
// with each alone. The errors do not leave a stock network that is not strict,
// either, whatever they quote.
func TestForged(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.run(t, "app0", "--ip", "172.19.0.100", "--label", "eip.nic=eth0")
	r.run(t, "app1", "--ip", "172.19.0.101", "--label", "eip.nic=eth1", "-p", "8090:8080", "-p", "8081:8081")
	r.run(t, "free", "--ip", "172.19.0.102")
	r.run(t, "held", "--ip", "172.19.0.103", "--label", "eip.nic=eth2", "-p", r.Addr("eth0").String()+":8095:8081")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	inbound := openSession(t, "to what is going to be held", r.Site, fmt.Sprintf("%v:8095", r.EIP("eth0")))
	inbound.goesOn(t)
	r.on("ip", "addr", "del", r.NIC("eth2").Addr.String(), "dev", "eth2")
	r.awaitState("held", plan.StateBlocked)
	// Held means that not even an established connection is answered.
	r.resetSniffers()
	r.send("held", ip4(netip.MustParseAddr("172.19.0.103"), lab.SiteAddr, 17, udp(1, forged, "x")))
	r.nothing("a held container's answers", func(p lab.Packet) bool { return p.SPort == 8095 && p.Proto == lab.ProtoTCP })

	r.docker("network", "create", "--subnet", "172.21.0.0/16", "stock")
	r.start(t, "stock-pinned", "--network", "stock", "--ip", "172.21.0.101", "--label", "eip.nic=eth1")
	r.start(t, "stock-held", "--network", "stock", "--ip", "172.21.0.103", "--label", "eip.nic=eth9")
	r.start(t, "plain", "-p", r.Addr("eth0").String()+":8096:8081") // by Docker, on docker0
	r.awaitState("stock-pinned", plan.StatePinned)
	r.awaitState("stock-held", plan.StateBlocked)
	quotes := r.quotes(t)
	forgedSoFar := func() uint64 {
		s, err := r.status()
		if err != nil {
			t.Fatal(err)
		}
		return s.Counters["forged"].Packets
	}
	before := forgedSoFar()
	r.quoteOthers("both locks", quotes, slices.Concat(oursSenders, stockSenders))
	if got, least := forgedSoFar()-before, uint64(len(quotes)-1); got < least {
		t.Errorf("%d ICMP errors were counted as forged, want those %d of stock-pinned at least: what they quote is no connection", got, least)
	}
	r.forge("both locks")
	r.kill()
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.SplitSeq(r.on("ip", family, "rule"), "\n") {
			if pref, _, ok := strings.Cut(line, ":"); ok && strings.Contains(line, "proto 201") {
				r.on("ip", family, "rule", "del", "pref", pref)
			}
		}
	}
	r.quoteOthers("lock 2 alone", quotes, slices.Concat(oursSenders, stockSenders))
	r.forge("lock 2 alone")
	r.serve()
	r.kill()
	r.on("nft", "flush", "ruleset")
	r.quoteOthers("lock 1 alone", quotes, oursSenders)
	r.forge("lock 1 alone")
	r.serve() // without a driver Docker takes 45 s to remove a container
}

// nothing fails if any NIC of the host emitted such a packet since the sniffers were reset.
func (r *rig) nothing(what string, match func(lab.Packet) bool) {
	r.t.Helper()
	if err := r.Settle(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	for _, n := range r.NICs() {
		for _, f := range r.Sniffer(n.Name).Flows() {
			if (f.Dst == lab.SiteAddr || f.Dst == lab.SiteAddr6) && match(f.Packet) {
				r.t.Errorf("%s: %v", what, f)
			}
		}
	}
}

// forge sends with every source that could be worth having.
func (r *rig) forge(stage string) {
	r.t.Helper()
	r.resetSniffers()
	for from, own := range map[string]string{"held": "", "app1": "172.19.0.101"} {
		var packets [][]byte
		for _, s := range []string{
			"172.19.0.100", "172.19.0.101", "172.19.0.102", "172.19.0.103", "172.19.0.200", "172.19.0.1",
			r.Addr("eth0").String(), r.Addr("eth1").String(), "8.8.8.8", "172.17.0.5",
		} {
			src := netip.MustParseAddr(s)
			if s == own {
				// Its own address may leave, but not in segments of no connection.
				packets = append(packets, ip4(src, lab.SiteAddr, 6, tcp(7778, forged, 0x11)), ip4(src, lab.SiteAddr, 6, tcp(7779, forged, 0x04)))
				continue
			}
			packets = append(packets, ip4(src, lab.SiteAddr, 17, udp(7777, forged, "forged")),
				ip4(src, lab.SiteAddr, 6, tcp(7778, forged, 0x11)), ip4(src, lab.SiteAddr, 6, tcp(7779, forged, 0x04)),
				ip4(src, netip.MustParseAddr("169.254.169.254"), 17, udp(7777, forged, "forged")))
		}
		r.send(from, packets...)
	}
	r.nothing(stage, isForged)
	r.clean()
}

func isForged(p lab.Packet) bool { return p.DPort == forged }

// sender is a container that sends ICMP errors.
type sender struct {
	name string
	addr netip.Addr
}

// Those on the eipnet network, and those on a stock one, where there is but one lock.
var (
	oursSenders = []sender{
		{"app0", netip.MustParseAddr("172.19.0.100")},
		{"app1", netip.MustParseAddr("172.19.0.101")},
		{"free", netip.MustParseAddr("172.19.0.102")},
		{"held", netip.MustParseAddr("172.19.0.103")},
	}
	stockSenders = []sender{{"stock-pinned", netip.MustParseAddr("172.21.0.101")}, {"stock-held", netip.MustParseAddr("172.21.0.103")}}
)

// quotes makes connections of the containers and of the host, and returns what
// came in by them, as it looks inside: in some the site called, in some it was.
func (r *rig) quotes(t *testing.T) map[string][]byte {
	t.Helper()
	app, err := r.BuildApp(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Host.Install(app, "sshd-like"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Host.Start("sshd-like", "serve", "--addr", fmt.Sprintf(":%d", sshPort)); err != nil {
		t.Fatal(err)
	}
	quotes := map[string][]byte{}
	called := func(what, nic string, port int, at netip.Addr, inside uint16) {
		var c net.Conn
		r.eventually("a connection to quote", func() (err error) {
			c, err = r.SiteDial(t.Context(), "tcp", fmt.Sprintf("%v:%d", r.EIP(nic), port))
			return err
		})
		t.Cleanup(func() { c.Close() })
		quotes[what] = ip4(lab.SiteAddr, at, 6, tcp(c.LocalAddr().(*net.TCPAddr).AddrPort().Port(), inside, 0x10))
	}
	plain := netip.MustParseAddr(r.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "plain"))
	called("the host's session", "eth0", sshPort+1, r.Addr("eth0"), sshPort+1)
	called("app1's published session", "eth1", 8081, oursSenders[1].addr, 8081)
	called("plain's published session", "eth0", 8096, plain, 8081)
	for _, s := range []sender{oursSenders[0], oursSenders[1], oursSenders[2], stockSenders[0], {"plain", plain}} {
		r.send(s.name, ip4(s.addr, lab.SiteAddr, 17, udp(5555, 7, "x")))
		quotes[s.name+"'s own flow"] = ip4(lab.SiteAddr, s.addr, 17, udp(7, 5555, "x"))
	}
	return quotes
}

// quoteOthers has every sender send ICMP errors about every other's connection, and about the host's.
func (r *rig) quoteOthers(stage string, quotes map[string][]byte, senders []sender) {
	r.t.Helper()
	for _, s := range senders {
		var errs [][]byte
		for what, quoted := range quotes {
			if !strings.HasPrefix(what, s.name) { // not its own
				errs = append(errs, ip4(s.addr, lab.SiteAddr, 1, unreachable(append(quoted, "chosen by the container"...))))
			}
		}
		r.resetSniffers()
		r.send(s.name, errs...)
		r.nothing(stage+": "+s.name+" quotes others", func(p lab.Packet) bool { return p.Proto == lab.ProtoICMP && p.SPort == 3 && p.DPort == 1 })
		r.clean()
	}
}
