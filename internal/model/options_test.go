package model_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eipnet/eipnet/internal/model"
)

func TestParsePinOptions(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   map[string]string
		want model.PinOptions
		err  string
	}{
		{name: "nothing"},
		{name: "nic", in: map[string]string{"eip.nic": "eth1"}, want: model.PinOptions{Selector: model.Selector{Kind: model.ByNIC, Name: "eth1"}}},
		{name: "keys without case", in: map[string]string{"EIP.NIC": " eth1 "}, want: model.PinOptions{Selector: model.Selector{Kind: model.ByNIC, Name: "eth1"}}},
		{name: "ip", in: map[string]string{"eip.ip": "172.31.0.14"}, want: model.PinOptions{Selector: model.Selector{Kind: model.ByIP, Addr: netip.MustParseAddr("172.31.0.14")}}},
		{name: "mac is normalised", in: map[string]string{"eip.mac": "02-42-AC-1F-00-0E"}, want: model.PinOptions{Selector: model.Selector{Kind: model.ByMAC, Name: "02:42:ac:1f:00:0e"}}},
		{name: "fallback alone", in: map[string]string{"eip.fallback": "host"}, want: model.PinOptions{Fallback: model.FallbackHost}},
		{name: "empty value", in: map[string]string{"eip.nic": ""}, err: "eip.nic has no value; accepted: eip.nic=eth1"},
		{name: "unknown key", in: map[string]string{"eip.nci": "eth1"}, err: "unknown option eip.nci; accepted: "},
		{name: "two selectors", in: map[string]string{"eip.nic": "eth1", "eip.ip": "172.31.0.8"}, err: "eip.ip=172.31.0.8 and eip.nic=eth1 both say which NIC: leave one of them out"},
		{name: "bad address", in: map[string]string{"eip.ip": "172.31.0"}, err: `eip.ip="172.31.0" is no IP address`},
		{name: "ip6 alone", in: map[string]string{"eip.ip6": "2001:db8::14"}, err: "eip.ip6=2001:db8::14 says which address of a NIC, and no NIC is named beside it"},
		{name: "exceptions", in: map[string]string{"eip.except": "10.0.0.0/8, 192.0.2.1"}, want: model.PinOptions{Except: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32")}}},
		{name: "bad exception", in: map[string]string{"eip.except": "10.0.0.0/8,home"}, err: `"home" is no prefix`},
		{name: "bad fallback", in: map[string]string{"eip.fallback": "not/a/nic"}, err: `eip.fallback="not/a/nic": "not/a/nic" is neither hold nor host nor an interface name`},
		{name: "all that is wrong is named", in: map[string]string{"eip.nci": "eth1", "eip.ip": "x"}, err: `eip.ip="x" is no IP address` + "\n" + "unknown option eip.nci"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := model.ParsePinOptions(tc.in)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want it to contain %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParsePinOptions(f *testing.F) {
	f.Add("eip.nic", "eth1", "eip.fallback", "host")
	f.Add("eip.ip", "172.31.0.14", "eip.ip6", "2001:db8::1")
	f.Add("eip.mac", "02:42:ac:1f:00:0e", "eip.nic", "")
	f.Add("eip.public", "119.26.38.75", "eip.except", "10.0.0.0/8, 2001:db8::/32,192.0.2.1")
	f.Add("eip.nic", "eth1", "eip.fallback", "eth2,eth3")
	f.Add("eip.allow", "eth0, eth1", "eip.lock", "true")
	f.Add("eip.strict", "false", "EIP.NIC", "ETH1")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		said := map[string]string{k1: v1, k2: v2}
		o, err := model.ParsePinOptions(said)
		checkNetworkSays(t, said, o, err)
		if err != nil {
			if !o.Selector.IsZero() || o.Except != nil || o.Fallback != "" || o.IP6.IsValid() {
				t.Errorf("an error with a value: %+v", o)
			}
			return
		}
		// What was accepted can be written down and read again.
		if s := o.Selector; !s.IsZero() {
			key, value, _ := strings.Cut(s.String(), "=")
			again, err := model.ParsePinOptions(map[string]string{key: value})
			if err != nil || again.Selector != s {
				t.Errorf("%v read again: %v, %v", s, again.Selector, err)
			}
		}
	})
}

// checkNetworkSays: a network may say what a container may, with the same
// meaning, and its ceiling; in a rebind, whose words are the same, too.
func checkNetworkSays(t *testing.T, said map[string]string, pin model.PinOptions, pinErr error) {
	t.Helper()
	n, err := model.ParseNetworkOptions(said)
	if pinErr == nil && err != nil {
		t.Errorf("a container may say %v, and a network may not: %v", said, err)
	}
	if pinErr == nil && !cmp.Equal(n, model.NetworkOptions{PinOptions: pin}, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})) {
		t.Errorf("%v means %+v of a container, and %+v of a network", said, pin, n)
	}
	if err != nil && (n.Allow != nil || n.Lock || n.Loose || !n.Selector.IsZero()) {
		t.Errorf("an error with a value: %+v", n)
	}
	for _, name := range n.Allow {
		if name == "" || len(name) > 15 {
			t.Errorf("%v allows %q", said, name)
		}
	}
	if err := (model.Rebind{Options: said}).Check(); (err == nil) != (pinErr == nil && !pin.Selector.IsZero()) {
		t.Errorf("%v in a rebind: %v, as a label: %v", said, err, pinErr)
	}
}

func TestMask(t *testing.T) {
	if got := model.DefaultMask.Of(2); got != 0x02000000 {
		t.Errorf("mark of NIC 2: %v", got)
	}
	if got := model.Mask(0x0ff00000).Of(3); got != 0x00300000 {
		t.Errorf("mark of NIC 3 under 0x0ff00000: %v", got)
	}
	for _, m := range []model.Mask{0, 0xff, 0xff00, 0x0ff00000, 0xff000000} {
		if err := m.Validate(); (err != nil) != (m == 0) {
			t.Errorf("mask %v: %v", m, err)
		}
	}
	for _, m := range []model.Mask{0x7f, 0x1ff, 0xf00f0000, 0xff0000ff} {
		if m.Validate() == nil {
			t.Errorf("mask %v accepted", m)
		}
	}
}
