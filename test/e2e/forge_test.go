package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// forged are ports at the site to which only forged packets are sent.
const forged = 20000

// TestForged: containers with NET_RAW, one of them held, send what is not
// theirs: others' addresses, segments of no connection, and ICMP errors that
// quote others' connections. Nothing of it leaves the host, with both locks and
// with each alone.
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
	r.eventually("held to be held", func() error {
		s, err := r.status()
		for _, e := range s.Endpoints {
			if e.Container == "held" && e.State != plan.StateBlocked {
				err = fmt.Errorf("it is %s", e.State)
			}
		}
		return err
	})
	// Held means that not even an established connection is answered.
	r.resetSniffers()
	r.send("held", ip4(netip.MustParseAddr("172.19.0.103"), lab.SiteAddr, 17, udp(1, forged, "x")))
	r.nothing("a held container's answers", func(p lab.Packet) bool { return p.SPort == 8095 && p.Proto == lab.ProtoTCP })

	r.quoteOthers(t)
	r.forge("both locks")
	r.kill()
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.SplitSeq(r.on("ip", family, "rule"), "\n") {
			if pref, _, ok := strings.Cut(line, ":"); ok && strings.Contains(line, "proto 201") {
				r.on("ip", family, "rule", "del", "pref", pref)
			}
		}
	}
	r.forge("lock 2 alone")
	r.serve()
	r.kill()
	r.on("nft", "flush", "ruleset")
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
			if f.Dst == lab.SiteAddr && match(f.Packet) {
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
	r.nothing(stage, func(p lab.Packet) bool {
		return p.DPort == forged && (p.Proto == lab.ProtoUDP || p.SPort != 7779 && p.SPort != 7778)
	})
	r.clean()
}

// quoteOthers has every container send ICMP errors about every other's connection, and about the host's.
func (r *rig) quoteOthers(t *testing.T) {
	self := map[string]netip.Addr{}
	for name, a := range map[string]string{"app0": "172.19.0.100", "app1": "172.19.0.101", "free": "172.19.0.102", "held": "172.19.0.103"} {
		self[name] = netip.MustParseAddr(a)
	}
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
	// The connections to quote, as they look inside: who was called by the site's port.
	quotes := map[string][]byte{}
	dial := func(nic string, port int) uint16 {
		var c net.Conn
		r.eventually("a connection to quote", func() (err error) {
			c, err = r.SiteDial(t.Context(), "tcp", fmt.Sprintf("%v:%d", r.EIP(nic), port))
			return err
		})
		t.Cleanup(func() { c.Close() })
		return c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	}
	quotes["the host's session"] = ip4(lab.SiteAddr, r.Addr("eth0"), 6, tcp(dial("eth0", sshPort+1), sshPort+1, 0x10))
	quotes["app1's published session"] = ip4(lab.SiteAddr, self["app1"], 6, tcp(dial("eth1", 8081), 8081, 0x10))
	for _, name := range []string{"app0", "app1", "free"} {
		r.send(name, ip4(self[name], lab.SiteAddr, 17, udp(5555, 7, "x")))
		quotes[name+"'s own flow"] = ip4(lab.SiteAddr, self[name], 17, udp(7, 5555, "x"))
	}
	for from, addr := range self {
		var errs [][]byte
		for what, quoted := range quotes {
			if !strings.HasPrefix(what, from) { // not its own
				errs = append(errs, ip4(addr, lab.SiteAddr, 1, unreachable(append(quoted, "chosen by the container"...))))
			}
		}
		r.resetSniffers()
		r.send(from, errs...)
		r.nothing(from+" quotes others", func(p lab.Packet) bool { return p.Proto == lab.ProtoICMP && p.SPort == 3 && p.DPort == 1 })
		r.clean()
	}
}
