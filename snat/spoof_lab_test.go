package snat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// spoofLab is a driver network and a stock one with containers on them.
//
//	br0 driver 172.19.0.1/16 fd00:19::1/64: a (port pa) .2, b (pb) .3
//	br1 stock  172.20.0.1/16 fd00:20::1/64: s (ps) .2 is pinned, r (pr) .3 is not, u (pu) .4 is on a port that is not listed
type spoofLab struct {
	host  *namespace
	boxes map[string]*namespace
	m     *Manager
	ports []BridgePort
}

func spoofMAC(box string) string {
	return fmt.Sprintf("02:42:ac:00:00:%02d", strings.Index(" absru", box))
}

func newSpoofLab(t testing.TB, bridgeNF int) *spoofLab {
	t.Helper()
	l := &spoofLab{host: newNamespace(t), boxes: make(map[string]*namespace)}
	if out, err := l.host.exec(t.Context(), "", fmt.Sprintf("sysctl -qw net.bridge.bridge-nf-call-iptables=%d net.bridge.bridge-nf-call-ip6tables=%d net.bridge.bridge-nf-call-arptables=%d",
		bridgeNF, bridgeNF, bridgeNF)); err != nil && bridgeNF > 0 {
		t.Skip("no br_netfilter: ", out)
	}
	for i := range 2 {
		br := fmt.Sprintf("br%d", i)
		l.host.run(t, fmt.Sprintf("ip link add %s address 02:42:ac:00:00:f%d type bridge", br, i), "ip link set "+br+" up",
			fmt.Sprintf("ip addr add 172.%d.0.1/16 dev %s", 19+i, br), fmt.Sprintf("ip -6 addr add fd00:%d::1/64 dev %s nodad", 19+i, br))
	}
	for i, box := range []string{"a", "b", "s", "r", "u"} {
		ns := newNamespace(t)
		l.boxes[box] = ns
		br, n := i/2, i%2+2
		if box == "u" {
			br, n = 1, 4
		}
		l.host.run(t, fmt.Sprintf("ip link add p%s type veth peer name e%s address %s", box, box, spoofMAC(box)),
			fmt.Sprintf("ip link set e%s netns /proc/%d/fd/%d", box, unix.Getpid(), ns.FD()),
			fmt.Sprintf("ip link set p%s master br%d up", box, br))
		ns.run(t, fmt.Sprintf("ip addr add 172.%d.0.%d/16 dev e%s", 19+br, n, box), fmt.Sprintf("ip link set e%s up", box),
			fmt.Sprintf("ip -6 addr add fd00:%d::%d/64 dev e%s", 19+br, n, box), // with duplicate address detection
			fmt.Sprintf("ip route add default via 172.%d.0.1", 19+br))
	}
	addrs := func(br, n int) []netip.Addr {
		return []netip.Addr{addr(fmt.Sprintf("172.%d.0.%d", 19+br, n)), addr(fmt.Sprintf("fd00:%d::%d", 19+br, n))}
	}
	l.ports = []BridgePort{
		{Bridge: "br0", Name: "pa", MAC: spoofMAC("a"), Addrs: addrs(0, 2), Only: true},
		{Bridge: "br0", Name: "pb", MAC: spoofMAC("b"), Addrs: addrs(0, 3), Only: true},
		{Bridge: "br1", Name: "ps", MAC: spoofMAC("s"), Addrs: addrs(1, 2), Bound: true},
		{Bridge: "br1", Name: "pr"},
		{Bridge: "br1", Name: "br1", MAC: "02:42:ac:00:00:f1", Addrs: addrs(1, 1)}, // the gateway
	}
	l.m = newManager(t, l.host)
	return l
}

// settled waits until no address of the containers is tentative any more.
func (l *spoofLab) settled(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		var b strings.Builder
		for _, ns := range l.boxes {
			b.WriteString(ns.run(t, "ip -6 addr show"))
		}
		all := b.String()
		if strings.Contains(all, "dadfailed") {
			t.Fatalf("duplicate address detection failed:\n%s", all)
		}
		if !strings.Contains(all, "tentative") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("still tentative:\n%s", all)
		}
		l.host.run(t, "sleep 0.1")
	}
}

func (l *spoofLab) spoofed(t testing.TB) uint64 {
	t.Helper()
	c, err := l.m.Spoofed()
	if err != nil {
		t.Fatal(err)
	}
	return c.Packets
}

// packetSocket sends and receives whole frames on a link.
type packetSocket struct{ fd int }

func newPacketSocket(t testing.TB, ns *namespace, link string) *packetSocket {
	t.Helper()
	s := &packetSocket{fd: -1}
	ns.Do(func() {
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			t.Fatal(err)
		}
		all := int(binary.NativeEndian.Uint16(port(unix.ETH_P_ALL)))
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			t.Fatal(err)
		}
		err = errors.Join(
			unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: ifi.Index}),
			unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
			unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}))
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

func (s *packetSocket) send(t testing.TB, frame []byte) {
	t.Helper()
	if _, err := unix.Write(s.fd, frame); err != nil {
		t.Fatal(err)
	}
}

// sees reports whether a frame with the mark comes in before one with the fence.
func (s *packetSocket) sees(t testing.TB, mark, fence []byte) bool {
	t.Helper()
	buf := make([]byte, 4096)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		if ll, ok := from.(*unix.SockaddrLinklayer); err != nil || ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		switch {
		case bytes.Contains(buf[:n], mark):
			return true
		case bytes.Contains(buf[:n], fence):
			return false
		}
	}
	t.Fatal("not even the fence came")
	return false
}

const broadcast = "ff:ff:ff:ff:ff:ff"

func hw(s string) []byte {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return mac
}

func be(v int) []byte { return port(uint16(v)) }

// frame is an Ethernet frame with these tags, each given as ethertype and VLAN.
func frame(dst, src string, kind int, payload []byte, tags ...[2]int) []byte {
	out := append(hw(dst), hw(src)...)
	for _, tag := range tags {
		out = append(append(out, be(tag[0])...), be(tag[1])...)
	}
	return append(append(out, be(kind)...), payload...)
}

func checksum(b []byte, sum uint32) []byte {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return be(int(^uint16(sum)))
}

// udp is an IP packet with a datagram to port 9.
func udp(src, dst string, data []byte) []byte {
	from, to := addr(src), addr(dst)
	d := append(bytes.Join([][]byte{be(9), be(9), be(8 + len(data)), be(0)}, nil), data...)
	if from.Is6() {
		pseudo := append(append(from.AsSlice(), to.AsSlice()...), d...)
		copy(d[6:], checksum(pseudo, uint32(len(d))+unix.IPPROTO_UDP))
		return ip6(src, dst, unix.IPPROTO_UDP, d)
	}
	h := append([]byte{0x45, 0}, be(20+len(d))...)
	h = append(h, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	h = append(append(h, from.AsSlice()...), to.AsSlice()...)
	copy(h[10:], checksum(h, 0))
	return append(h, d...)
}

func ip6(src, dst string, next byte, data []byte) []byte {
	h := append([]byte{0x60, 0, 0, 0}, be(len(data))...)
	h = append(h, next, 255)
	return append(append(append(h, addr(src).AsSlice()...), addr(dst).AsSlice()...), data...)
}

// arp is an ARP packet to all.
func arp(op int, mac, ip, target string, data []byte) []byte {
	return bytes.Join([][]byte{be(1), be(unix.ETH_P_IP), {6, 4}, be(op), hw(mac), addr(ip).AsSlice(), hw(broadcast), addr(target).AsSlice(), data}, nil)
}

// nd is an ICMPv6 message with a target, behind a destination options header where asked for.
func nd(kind byte, src, dst, target string, options bool, data []byte) []byte {
	body := bytes.Join([][]byte{{kind, 0, 0, 0, 0x20, 0, 0, 0}, addr(target).AsSlice(), data}, nil)
	pseudo := append(append(addr(src).AsSlice(), addr(dst).AsSlice()...), body...)
	copy(body[2:], checksum(pseudo, uint32(len(body))+unix.IPPROTO_ICMPV6))
	if options {
		return ip6(src, dst, unix.IPPROTO_DSTOPTS, append([]byte{unix.IPPROTO_ICMPV6, 0, 1, 4, 0, 0, 0, 0}, body...))
	}
	return ip6(src, dst, unix.IPPROTO_ICMPV6, body)
}
