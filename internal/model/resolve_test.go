package model

import (
	"net/netip"
	"testing"
)

// TestResolve: what --nic of exec and host add names is found by name, address, EIP and MAC address.
func TestResolve(t *testing.T) {
	host := Host{NICs: []NIC{
		{Name: "eth0", MAC: "02:42:ac:1f:00:08", Addrs: []netip.Prefix{netip.MustParsePrefix("172.31.0.8/20")}},
		{Name: "eth1", MAC: "02:42:ac:1f:00:0e", Addrs: []netip.Prefix{netip.MustParsePrefix("172.31.0.13/20"), netip.MustParsePrefix("172.31.0.14/20")}},
	}}
	second := netip.MustParseAddr("172.31.0.14")
	eips := map[netip.Addr]netip.Addr{netip.MustParseAddr("119.26.38.75"): second, netip.MustParseAddr("1.2.3.4"): netip.MustParseAddr("172.31.0.99")}
	for nic, want := range map[string]netip.Addr{
		"eth1": {}, "172.31.0.14": second, "119.26.38.75": second, "02:42:AC:1F:00:0E": {},
		"172.31.0.99": netip.IPv4Unspecified(), "1.2.3.4": netip.IPv4Unspecified(), "5.6.7.8": netip.IPv4Unspecified(), // none
	} {
		options, err := SelectNIC(nic)
		if err != nil {
			t.Errorf("%s: %v", nic, err)
			continue
		}
		pin, err := ParsePinOptions(options)
		if err != nil {
			t.Errorf("%s: %v", nic, err)
			continue
		}
		got, addr, err := host.Resolve(pin.Selector, eips)
		if none := want.IsUnspecified(); none != (err != nil) || !none && (got.Name != "eth1" || addr != want) {
			t.Errorf("%s: %s %v, %v", nic, got.Name, addr, err)
		}
	}
	// An EIP of an EIP is none that was asked for.
	private := netip.MustParseAddr("1.2.3.4")
	eips[netip.MustParseAddr("8.8.4.4")], eips[private] = private, second
	if got, _, err := host.Resolve(Selector{Kind: ByPublic, Addr: netip.MustParseAddr("8.8.4.4")}, eips); err == nil {
		t.Errorf("eip.public by two steps is %s", got.Name)
	}
}
