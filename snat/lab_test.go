package snat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// lab is a host with two managed NICs and a VPN leg, a network of ours and one
// of Docker's that is watched, and what is around it. The world drops whatever
// does not come with the address of the NIC that it came by.
//
//	container 172.19.0.100 (eth0), .101 (eth1), .104 (eth1's second address), .102 (host), .103 (held), .110 (pending); 10.66.0.1 is nobody's
//	sibling   172.19.0.120 (held)
//	stock     172.20.0.2 (eth1), .3 (nobody said anything), .4 (held)
//	host      eip_bridge 172.19.0.1, docker0 172.20.0.1, eth0 172.31.0.8, eth1 172.31.16.14 and .15
//	          tun0 10.8.0.1: a NIC that is not managed; virbr0 192.168.122.1: a bridge that we do not know
//	world     172.31.0.1, 172.31.16.1, 203.0.113.1 to .3, 198.51.100.1 (excepted), .2 (excepted for .101)
//	leg       10.8.0.2, 203.0.113.5; guest 192.168.122.2
//
// The host's main table leads to 203.0.113.2 by tun0 and to .3 by virbr0, which
// is wrong. Everything is there in IPv6, too; [six] says how.
type lab struct {
	container, sibling, stock, host, world, leg, guest *namespace

	m  *Manager
	fw plan.Firewall
}

const worldAddr = "203.0.113.1"

// six translates what is said in IPv4.
func six(s string) string {
	return strings.NewReplacer(
		"172.19.0.", "fd00:19::", "172.20.0.", "fd00:20::", "172.31.0.", "2001:db8::", "172.31.16.", "2001:db8:1::",
		"10.8.0.", "fd10:8::", "192.168.122.", "fd00:122::", "203.0.113.", "2001:db8:ffff::", "198.51.100.", "2001:db8:eeee::",
		"10.66.0.", "fd66::", "127.0.0.", "::", "0.0.0.0", "::",
		"/16", "/64", "/24", "/64", "/32", "/128", "/10", "/10",
	).Replace(s)
}

// ip runs lines of ip for both families.
func (ns *namespace) ip(t *testing.T, lines ...string) {
	t.Helper()
	text := strings.Join(lines, "\n") + "\n"
	for flag, batch := range map[string]string{"-4": text, "-6": six(text)} {
		if _, err := ns.exec(t.Context(), batch, "ip "+flag+" -batch -"); err != nil {
			t.Fatal(err)
		}
	}
}

func newLab(t *testing.T, bridgeNF bool) *lab {
	t.Helper()
	l := &lab{}
	for _, ns := range []**namespace{&l.container, &l.sibling, &l.stock, &l.host, &l.world, &l.leg, &l.guest} {
		*ns = newNamespace(t)
		// No duplicate address detection: addresses count at once.
		(*ns).run(t, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.ipv4.conf.all.rp_filter=0")
	}
	l.host.run(t, "ip link add eip_bridge type bridge", "ip link add docker0 type bridge", "ip link add virbr0 type bridge", "ip link add eipnull0 type bridge",
		"ip link set eip_bridge up", "ip link set docker0 up", "ip link set virbr0 up", "ip link set eipnull0 arp off up")
	pair := func(name string, ns *namespace, peer string) {
		t.Helper()
		// The peer is moved by the descriptor of its namespace.
		l.host.run(t, fmt.Sprintf("ip link add %s type veth peer name %s", name, peer), "ip link set "+name+" up",
			fmt.Sprintf("ip link set %s netns /proc/%d/fd/%d", peer, unix.Getpid(), ns.FD()))
		ns.run(t, "ip link set "+peer+" up")
	}
	pair("veth0", l.container, "c0")
	pair("veth3", l.sibling, "c0")
	pair("veth1", l.stock, "d0")
	pair("veth2", l.guest, "v0")
	pair("eth0", l.world, "w0")
	pair("eth1", l.world, "w1")
	pair("tun0", l.leg, "t0")
	l.host.run(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=2")
	if _, err := l.host.exec(t.Context(), "", "sysctl -qw net.bridge.bridge-nf-call-iptables="+map[bool]string{true: "1", false: "0"}[bridgeNF]+
		" net.bridge.bridge-nf-call-ip6tables="+map[bool]string{true: "1", false: "0"}[bridgeNF]); err != nil && bridgeNF {
		t.Skip("no br_netfilter: ", err)
	}
	l.host.run(t,
		// With br_netfilter a hairpin is bridged, back out of the port that it came by.
		"ip link set veth0 master eip_bridge", "ip link set veth0 type bridge_slave hairpin on",
		"ip link set veth3 master eip_bridge", "ip link set veth1 master docker0", "ip link set veth2 master virbr0",
		"ip link set eth0 group 45", "ip link set eth1 group 45")
	l.host.ip(t, "addr add 172.19.0.1/16 dev eip_bridge", "addr add 172.20.0.1/16 dev docker0", "addr add 192.168.122.1/24 dev virbr0",
		"addr add 172.31.0.8/24 dev eth0", "addr add 172.31.16.14/24 dev eth1", "addr add 172.31.16.15/24 dev eth1", "addr add 10.8.0.1/24 dev tun0",
		"route add default via 172.31.0.1", "route add 203.0.113.2 via 10.8.0.2", "route add 203.0.113.3 via 192.168.122.2",
		"route add 198.51.100.77 via 172.31.16.1", "route add 10.66.0.1 via 172.19.0.100")
	for _, n := range []int{100, 101, 102, 103, 104, 110} {
		l.container.ip(t, fmt.Sprintf("addr add 172.19.0.%d/16 dev c0", n))
	}
	l.container.ip(t, "addr add 10.66.0.1/32 dev lo", "route add default via 172.19.0.1")
	l.sibling.ip(t, "addr add 172.19.0.120/16 dev c0", "route add default via 172.19.0.1")
	l.stock.ip(t, "addr add 172.20.0.2/16 dev d0", "addr add 172.20.0.3/16 dev d0", "addr add 172.20.0.4/16 dev d0", "route add default via 172.20.0.1")
	l.world.ip(t, "addr add 172.31.0.1/24 dev w0", "addr add 172.31.16.1/24 dev w1",
		"addr add "+worldAddr+"/32 dev lo", "addr add 203.0.113.2/32 dev lo", "addr add 203.0.113.3/32 dev lo",
		"addr add 198.51.100.1/32 dev lo", "addr add 198.51.100.2/32 dev lo",
		"route add 172.19.0.0/16 via 172.31.0.8", "route add 198.51.100.77 via 172.31.0.8", "route add 10.8.0.1 via 172.31.16.14")
	l.leg.ip(t, "addr add 10.8.0.2/24 dev t0", "addr add 203.0.113.5/32 dev lo", "route add default via 10.8.0.1")
	l.guest.ip(t, "addr add 192.168.122.2/24 dev v0", "route add default via 192.168.122.1")
	fabric := `table inet fabric {
	counter foreign { }
	chain pre { type filter hook prerouting priority -300;
		iifname "w0" ip saddr != 172.31.0.8 counter name foreign drop
		iifname "w1" ip saddr != { 172.31.16.14, 172.31.16.15 } counter name foreign drop
		iifname "w0" ip6 saddr != { 2001:db8::8, fe80::/10, :: } counter name foreign drop
		iifname "w1" ip6 saddr != { 2001:db8:1::14, 2001:db8:1::15, fe80::/10, :: } counter name foreign drop
		iifname { "t0", "v0" } ip saddr { 172.19.0.0/16, 172.31.16.14 } counter name foreign drop
		iifname { "t0", "v0" } ip6 saddr { fd00:19::/64, 2001:db8:1::14 } counter name foreign drop
	}
}
`
	for _, ns := range []*namespace{l.world, l.leg, l.guest} {
		ns.nft(t, fabric)
	}
	l.docker(t)
	l.route(t)
	l.firewall(t)
	return l
}

// docker does for docker0 what Docker does, and sees whether we touch .3, about
// which nobody said anything.
func (l *lab) docker(t *testing.T) {
	t.Helper()
	l.host.nft(t, `table inet docker {
	counter masqueraded { }
	counter touched { }
	chain pre { type nat hook prerouting priority dstnat;
		ip daddr { 172.31.0.8, 172.31.16.14 } dnat ip to tcp dport map { 9002 : 172.20.0.2 . 8080, 9003 : 172.20.0.3 . 8080, 9004 : 172.20.0.4 . 8080 }
		ip6 daddr { 2001:db8::8, 2001:db8:1::14 } dnat ip6 to tcp dport map { 9002 : fd00:20::2 . 8080, 9003 : fd00:20::3 . 8080, 9004 : fd00:20::4 . 8080 }
	}
	chain post { type nat hook postrouting priority srcnat;
		ip saddr 172.20.0.3 oifname != "docker0" counter name masqueraded
		ip6 saddr fd00:20::3 oifname != "docker0" counter name masqueraded
		ip saddr 172.20.0.0/16 oifname != "docker0" masquerade
		ip6 saddr fd00:20::/64 oifname != "docker0" masquerade
	}
	chain touched {
		meta mark & 0xff000000 != 0 counter name touched
		ct mark & 0xff000000 != 0 counter name touched
	}
	chain see { type filter hook forward priority 10;
		ip saddr 172.20.0.3 jump touched
		ip daddr 172.20.0.3 jump touched
		ip6 saddr fd00:20::3 jump touched
		ip6 daddr fd00:20::3 jump touched
	}
}
`)
}

// route makes the rules and tables of internal/plan.
func (l *lab) route(t *testing.T) {
	t.Helper()
	l.host.ip(t,
		"rule add pref 5100 iif eip_bridge lookup 8100",
		"rule add pref 5100 iif docker0 lookup 8100",
		"rule add pref 5110 fwmark 0x1000000/0xff000000 lookup 8101",
		"rule add pref 5110 fwmark 0x2000000/0xff000000 lookup 8102",
		"rule add pref 5190 iif eip_bridge lookup 8199",
		"rule add pref 5199 nop",
		"rule add pref 5180 fwmark 0xff000000/0xff000000 goto 5199",
		"rule add pref 32700 from 172.31.16.14 iif lo lookup main suppress_prefixlength 0 suppress_ifgroup 45",
		"rule add pref 32701 from 172.31.16.14 iif lo lookup 8102",
		"route add 172.19.0.0/16 dev eip_bridge table 8100",
		"route add 172.20.0.0/16 dev docker0 table 8100",
		"route add 172.31.0.0/24 dev eth0 table 8101",
		"route add default via 172.31.0.1 dev eth0 table 8101",
		"route add unreachable default metric 4294967295 table 8101",
		"route add 172.31.16.0/24 dev eth1 table 8102",
		"route add default via 172.31.16.1 dev eth1 table 8102",
		"route add unreachable default metric 4294967295 table 8102",
		"route add default dev eipnull0 table 8199")
}

// unroute deletes all rules of ours, and with them lock 1.
func (l *lab) unroute(t *testing.T) {
	t.Helper()
	var lines []string
	for _, pref := range []string{"5100", "5100", "5110", "5110", "5180", "5190", "5199", "32700", "32701"} {
		lines = append(lines, "rule del pref "+pref)
	}
	l.host.ip(t, lines...)
}

func (l *lab) firewall(t *testing.T) {
	t.Helper()
	l.fw = plan.Firewall{
		Mask:   model.DefaultMask,
		NICs:   []plan.FirewallNIC{{ID: 1, Name: "eth0"}, {ID: 2, Name: "eth1", HostReplies: true}},
		Locked: []string{"eip_bridge"}, Ours: []string{"eip_bridge"}, Watched: []string{"docker0"}, Inside: []string{"docker0", "eip_bridge"},
		Except:    prefixes("169.254.0.0/16", "fe80::/10"),
		NoForward: model.Families[:],
	}
	for _, as := range []func(string) string{strings.Clone, six} {
		uplink := func(nic, a string) { l.fw.Uplinks = append(l.fw.Uplinks, plan.Uplink{NIC: nic, Addr: addr(as(a))}) }
		uplink("eth0", "172.31.0.8")
		uplink("eth1", "172.31.16.14")
		uplink("eth1", "172.31.16.15")
		uplink("tun0", "10.8.0.1")
		source := func(a string, v plan.Verdict) {
			l.fw.Sources = append(l.fw.Sources, plan.Source{Addr: addr(as(a)), Verdict: v})
		}
		pin := func(a string, id model.NICID, nic, address string) {
			l.fw.Sources = append(l.fw.Sources, plan.Source{Addr: addr(as(a)), NIC: id, NICName: nic, Address: addr(as(address))})
		}
		pin("172.19.0.100", 1, "eth0", "172.31.0.8")
		pin("172.19.0.101", 2, "eth1", "172.31.16.14")
		source("172.19.0.102", plan.ViaHost)
		pin("172.19.0.104", 2, "eth1", "172.31.16.15")
		source("172.19.0.110", plan.Pending)
		for _, held := range []string{"172.19.0.103", "172.19.0.120", "172.20.0.4"} {
			source(held, plan.Blocked)
		}
		pin("172.20.0.2", 2, "eth1", "172.31.16.14")
		publish := func(host string, port uint16, to string) {
			l.fw.Forwards = append(l.fw.Forwards, plan.Forward{Proto: model.TCP, Addr: addr(as(host)), Port: port, To: addrPort(net.JoinHostPort(as(to), "8080"))})
		}
		publish("172.31.0.8", 8090, "172.19.0.100")
		publish("172.31.16.14", 8090, "172.19.0.101")
		publish("172.31.16.14", 8091, "172.19.0.100")
		publish("172.31.0.8", 8093, "172.19.0.103")
		publish("0.0.0.0", 8092, "172.19.0.102")
		l.fw.Own = append(l.fw.Own, prefixes(as("172.19.0.0/16"), as("172.20.0.2/32"), as("172.20.0.4/32"))...)
		l.fw.OurSubnets = append(l.fw.OurSubnets, prefixes(as("172.19.0.0/16"))...)
		l.fw.Masqueraded = append(l.fw.Masqueraded, prefixes(as("172.19.0.0/16"))...)
		l.fw.Except = append(l.fw.Except, prefixes(as("198.51.100.1/32"))...)
		l.fw.ExceptBy = append(l.fw.ExceptBy, plan.Exception{Source: addr(as("172.19.0.101")), To: prefixes(as("198.51.100.2/32"))[0]})
	}
	l.m = newManager(t, l.host)
	apply(t, l.m, l.fw, true, true)
}

// serve answers each TCP connection to the port with the address that it came from.
func serve(t *testing.T, ns *namespace, port int) {
	t.Helper()
	serveAt(t, ns, fmt.Sprintf(":%d", port))
}

func serveAt(t *testing.T, ns *namespace, address string) {
	t.Helper()
	var listener net.Listener
	var err error
	ns.Do(func() { listener, err = net.Listen("tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, host)
			_ = c.Close()
		}
	}()
}

// How long to wait for what should come, and for what should not. The first
// spans a retransmission: between namespaces an ICMP error can be back before
// connect has let go of its socket, and TCP then overlooks it. The second can be
// short, because what should not come is counted where it is stopped.
const patience, silence = 15 * time.Second, 150 * time.Millisecond

var errTimeout = errors.New("nothing came back")

// ask connects from an address of the namespace and returns the address that the server saw.
func ask(t *testing.T, ns *namespace, from, to string, timeout time.Duration) (seen string, err error) {
	t.Helper()
	ns.Do(func() {
		d := net.Dialer{Timeout: timeout}
		if from != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		var c net.Conn
		if c, err = d.DialContext(context.Background(), "tcp", to); err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		var b []byte
		b, err = io.ReadAll(c)
		seen = string(b)
	})
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		err = errTimeout
	}
	return seen, err
}

// call is one connection, said in IPv4.
type call struct {
	name     string
	ns       *namespace
	from, to string
	port     int
	seen     string // the source that the server saw
	err      error
	counter  string // has to move
	bridged  bool   // looked at with br_netfilter, too
}

// calls makes the connections in both families, and sees that no packet
// arrives that has no business where it does.
func (l *lab) calls(t *testing.T, list []call) {
	t.Helper()
	for _, c := range list {
		for _, f := range model.Families {
			t.Run(f.String()+" "+c.name, func(t *testing.T) {
				if f == model.IPv6 {
					c.from, c.to, c.seen = six(c.from), six(c.to), six(c.seen)
					if errors.Is(c.err, syscall.EHOSTUNREACH) {
						c.err = syscall.EACCES
					}
				}
				before := uint64(0)
				if c.counter != "" {
					before = counter(t, l.m, c.counter)
				}
				timeout := patience
				if errors.Is(c.err, errTimeout) {
					timeout = silence
				}
				seen, err := ask(t, c.ns, c.from, net.JoinHostPort(c.to, strconv.Itoa(c.port)), timeout)
				if seen != c.seen || !errors.Is(err, c.err) {
					t.Errorf("seen as %q, error %v; want %q, %v", seen, err, c.seen, c.err)
				}
				if c.counter != "" && !moves(t, l.m, c.counter, before) {
					t.Errorf("counter %s did not move", c.counter)
				}
				l.nothingForeign(t)
			})
		}
	}
}

// nothingForeign fails where a packet left by the wrong device or with the wrong source.
func (l *lab) nothingForeign(t *testing.T) {
	t.Helper()
	for name, ns := range map[string]*namespace{"world": l.world, "leg": l.leg, "guest": l.guest} {
		if n := counted(t, ns, "fabric", "foreign"); n != 0 {
			t.Errorf("%d packets came to the %s by the wrong device or with the wrong source", n, name)
		}
	}
}

// counted reads a counter of a table and sets it to zero.
func counted(t *testing.T, ns *namespace, table, name string) (n int) {
	t.Helper()
	_, rest, _ := strings.Cut(ns.run(t, "nft reset counter inet "+table+" "+name), "packets ")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// planted does it, again and again, until the counter of a table has moved. What
// is still under way then is not counted as somebody else's.
func planted(t *testing.T, ns *namespace, table, name string, do func()) bool {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		do()
		if counted(t, ns, table, name) != 0 {
			<-time.After(silence)
			counted(t, ns, table, name)
			return true
		}
	}
	return false
}

// moves reports whether a counter of ours has moved: what was just sent may
// still be under way.
func moves(t *testing.T, m *Manager, name string, before uint64) bool {
	t.Helper()
	for end := time.Now().Add(patience); counter(t, m, name) == before; <-time.After(silence / 10) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}
