package lab

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func testNIC(t *testing.T) NIC {
	t.Helper()
	nics, err := nicsOf(OneSubnet, map[string][]netip.Prefix{"eth1": {netip.MustParsePrefix("172.31.0.15/32")}})
	if err != nil {
		t.Fatal(err)
	}
	return nics[1]
}

func TestParse(t *testing.T) {
	n := testNIC(t)
	mac, src, dst := n.MAC.String(), n.Addr.Addr(), SiteAddr
	for _, tt := range []struct {
		name  string
		frame []byte
		want  Packet
		own   bool
	}{
		{"ip4", frameIP4(n.MAC, broadcast, src, dst, []byte("x")), Packet{"eth1", IPv4, mac, src, dst, ProtoUDP, 9, 9, 0}, true},
		{"ip6", frameIP6(n.MAC, broadcast, plantSrc6, SiteAddr6, nil), Packet{"eth1", IPv6, mac, plantSrc6, SiteAddr6, ProtoUDP, 9, 9, 0}, false},
		{"extra address", frameIP4(n.MAC, broadcast, netip.MustParseAddr("172.31.0.15"), dst, nil), Packet{"eth1", IPv4, mac, netip.MustParseAddr("172.31.0.15"), dst, ProtoUDP, 9, 9, 0}, true},
		{"arp", frameARP(n.MAC, src, n.Gateway), Packet{NIC: "eth1", Kind: ARP, SrcMAC: mac, Src: src, Dst: n.Gateway, Proto: 1}, true},
		{"arp probe", frameARP(n.MAC, netip.IPv4Unspecified(), src), Packet{NIC: "eth1", Kind: ARP, SrcMAC: mac, Src: netip.IPv4Unspecified(), Dst: src, Proto: 1}, true},
		{"other", settleFrame(n, nil), Packet{NIC: "eth1", Kind: Other, SrcMAC: mac}, true},
		{"another MAC", ether(broadcast, n.MAC, 0x88b5), Packet{NIC: "eth1", Kind: Other, SrcMAC: broadcast.String()}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := parse("eth1", tt.frame)
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if own := (&Sniffer{nic: n}).own(got); own != tt.own {
				t.Errorf("own %v: want %v", own, tt.own)
			}
			for i := range tt.frame { // a frame may be cut anywhere
				parse("eth1", tt.frame[:i])
			}
		})
	}
}

func TestDNSAnswer(t *testing.T) {
	query := func(kind byte, name ...string) []byte {
		q := []byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
		for _, label := range name {
			q = append(append(q, byte(len(label))), label...)
		}
		return append(q, 0, 0, kind, 0, 1)
	}
	for _, tt := range []struct {
		name    string
		query   []byte
		rcode   byte
		address bool
	}{
		{"site", query(1, "site", "test"), 0, true},
		{"another type", query(28, "site", "test"), 0, false},
		{"another name", query(1, "other", "test"), 3, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, got := dnsAnswer(tt.query)
			if got == nil || got[3]&0xf != tt.rcode || (got[7] == 1) != tt.address {
				t.Fatalf("answer % x", got)
			}
			if tt.address && !slices.Equal(got[len(got)-4:], SiteAddr.AsSlice()) {
				t.Errorf("address % x", got[len(got)-4:])
			}
			for i := range tt.query {
				if _, got := dnsAnswer(tt.query[:i]); got != nil {
					t.Errorf("an answer to the first %d bytes", i)
				}
			}
		})
	}
}
