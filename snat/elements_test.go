package snat

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"pgregory.net/rapid"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

func TestMergePrefixes(t *testing.T) {
	tests := []struct {
		name     string
		prefixes []string
		family   model.Family
		want     []string
	}{
		{"none", nil, model.IPv4, nil},
		{"other family", []string{"fd00::/8"}, model.IPv4, nil},
		{"inside another", []string{"10.1.0.0/16", "10.0.0.0/8", "10.255.255.255/32"}, model.IPv4, []string{"10.0.0.0-10.255.255.255"}},
		{"twice", []string{"10.0.0.0/8", "10.0.0.0/8"}, model.IPv4, []string{"10.0.0.0-10.255.255.255"}},
		{"touching", []string{"10.1.0.0/16", "10.0.0.0/16"}, model.IPv4, []string{"10.0.0.0-10.1.255.255"}},
		{"apart", []string{"10.2.0.0/16", "10.0.0.0/16"}, model.IPv4, []string{"10.0.0.0-10.0.255.255", "10.2.0.0-10.2.255.255"}},
		{"not masked", []string{"10.0.0.77/23"}, model.IPv4, []string{"10.0.0.0-10.0.1.255"}},
		{"to the last address", []string{"240.0.0.0/4", "255.255.255.255/32"}, model.IPv4, []string{"240.0.0.0-255.255.255.255"}},
		{"everything", []string{"0.0.0.0/0", "10.0.0.0/8"}, model.IPv4, []string{"0.0.0.0-255.255.255.255"}},
		{"mapped", []string{"::ffff:10.0.0.0/104"}, model.IPv4, []string{"10.0.0.0-10.255.255.255"}},
		{"IPv6", []string{"fe80::/10", "2001:db8::/61"}, model.IPv6, []string{
			"2001:db8::-2001:db8:0:7:ffff:ffff:ffff:ffff", "fe80::-febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
		}},
		{"IPv6 to the last address", []string{"ff00::/8"}, model.IPv6, []string{"ff00::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, i := range mergePrefixes(prefixes(tt.prefixes...), tt.family) {
				got = append(got, i.first.String()+"-"+i.last.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func contains(list []interval, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(i interval) bool { return i.first.Compare(a) <= 0 && a.Compare(i.last) <= 0 })
}

// TestMergeProperties: the ranges hold just what the prefixes hold, neither
// overlap nor touch, and survive being written and read.
func TestMergeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.SampledFrom(model.Families[:]).Draw(t, "family")
		spec := setSpec{key: []nftables.SetDatatype{nftables.TypeIPAddr}, interval: true}
		if f == model.IPv6 {
			spec.key = []nftables.SetDatatype{nftables.TypeIP6Addr}
		}
		width := int(spec.key[0].Bytes)
		address := rapid.Custom(func(t *rapid.T) netip.Addr {
			// Few different bytes, so that prefixes meet.
			b := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 2, 127, 128, 254, 255}), width, width).Draw(t, "address")
			a, _ := netip.AddrFromSlice(b)
			return a
		})
		prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
			return netip.PrefixFrom(address.Draw(t, "address"), rapid.IntRange(0, 8*width).Draw(t, "bits"))
		})
		in := rapid.SliceOfN(prefix, 0, 12).Draw(t, "prefixes")
		probes := rapid.SliceOfN(address, 1, 20).Draw(t, "probes")
		list := mergePrefixes(slices.Clone(in), f)
		for n, i := range list {
			if i.last.Less(i.first) || n > 0 && !list[n-1].last.Next().Less(i.first) {
				t.Fatalf("ranges overlap or touch: %v", list)
			}
			probes = append(probes, i.first, i.last)
		}
		for _, a := range probes {
			// IPv4-mapped IPv6 prefixes count as IPv4.
			want := slices.ContainsFunc(in, func(p netip.Prefix) bool { return model.FamilyOf(p.Addr()) == f && p.Contains(a) })
			if got := contains(list, a); model.FamilyOf(a) == f && got != want {
				t.Fatalf("%v in %v: %v, in %v: %v", a, in, want, list, got)
			}
		}
		var raw []nftables.SetElement
		for _, i := range list {
			raw = append(raw, spec.encode(string(i.key()), "")...)
			if back := intervalOf(string(i.key()), width); back != i {
				t.Fatalf("%v became %v", i, back)
			}
		}
		slices.Reverse(raw) // the kernel lists downwards
		got, want := spec.decode(raw), make(elements)
		for _, i := range list {
			want[string(i.key())] = ""
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("read back (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(want, spec.union(want, got)); diff != "" {
			t.Fatalf("union with itself (-want +got):\n%s", diff)
		}
	})
}

func TestRenderElements(t *testing.T) {
	got, err := renderElements(sample())
	if err != nil {
		t.Fatal(err)
	}
	eth0, eth1 := "eth0"+strings.Repeat("\x00", 12), "eth1"+strings.Repeat("\x00", 12)
	tests := []struct {
		set  string
		want elements
	}{
		{"snat4", elements{"\xac\x11\x00\x05" + eth1: "\xac\x1f\x10\x0e", "\xac\x13\x00\x64" + eth0: "\xac\x1f\x00\x08", "\xac\x13\x00\x65" + eth1: "\xac\x1f\x10\x0e"}},
		{"pin4", elements{"\xac\x11\x00\x05": "nic-2", "\xac\x13\x00\x64": "nic-1", "\xac\x13\x00\x65": "nic-2", "\xac\x13\x00\x66": "via-host"}},
		{"dnatany4", elements{"\x11\x00\x00\x00\x00\x35\x00\x00": "\xac\x13\x00\x66\x14\xe9\x00\x00"}},
		{"own4", elements{"\xac\x11\x00\x05\xac\x11\x00\x06": "", "\xac\x13\x00\x00\xac\x14\x00\x00": ""}},
		{"ours4", elements{"\xac\x13\x00\x00\xac\x14\x00\x00": ""}},
		{"exceptby4", elements{"\xac\x13\x00\x64\x0a\x00\x00\x00\xac\x13\x00\x64\x0a\xff\xff\xff": ""}},
		{"ctnic-host", elements{string(n32(0x02000000)): "nic-2"}},
		{"nicin-host", elements{eth1: "ct-2"}},
		{"blocked4", elements{"\xac\x13\x00\x67": ""}},
		{"managed", elements{eth0: "", eth1: "", "eth3" + strings.Repeat("\x00", 12): ""}},
		{"nicaddr6", elements{eth1 + string(addr("2001:db8::14").AsSlice()): ""}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, got[tt.set]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.set, diff)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	tests := []struct {
		name string
		harm func(*plan.Firewall)
		want string
	}{
		{"mask", func(fw *plan.Firewall) { fw.Mask = 0xf }, "mark mask"},
		{"NIC not managed", func(fw *plan.Firewall) { fw.Sources[0].NIC = 7 }, "source 172.17.0.5: pinned to NIC 7 (eth1)"},
		{"no NIC", func(fw *plan.Firewall) { fw.Sources[0].NIC, fw.Sources[0].NICName = 0, "" }, "source 172.17.0.5: pinned to NIC 0"},
		{"another NIC's name", func(fw *plan.Firewall) { fw.Sources[0].NICName = "sixteencharacter" }, "source 172.17.0.5: pinned to NIC 2 (sixteencharacter)"},
		{"no address to leave with", func(fw *plan.Firewall) { fw.Sources[0].Address = netip.Addr{} }, "source 172.17.0.5: pinned"},
		{"address of the other family", func(fw *plan.Firewall) { fw.Sources[0].Address = addr("2001:db8::1") }, "IPv4 address"},
		{"no source", func(fw *plan.Firewall) { fw.Sources[0].Addr = netip.Addr{} }, "source for NIC 2 (eth1) with address 172.31.16.14"},
		{"exception of nobody", func(fw *plan.Firewall) { fw.ExceptBy[0].Source = netip.Addr{} }, "from 10.0.0.0/8"},
		{"exception from nothing", func(fw *plan.Firewall) { fw.ExceptBy[0].To = netip.Prefix{} }, "source 172.19.0.100"},
		{"verdict", func(fw *plan.Firewall) { fw.Sources[0].Verdict = 9 }, "source 172.17.0.5: unknown verdict"},
		{"name too long", func(fw *plan.Firewall) { fw.Locked[0] = "sixteencharacter" }, "sixteencharacter"},
		{"NIC number", func(fw *plan.Firewall) { fw.NICs[0].ID = 99 }, "number 99"},
		{"port between families", func(fw *plan.Firewall) { fw.Forwards[0].Addr = addr("::") }, "one family"},
		{"port without address", func(fw *plan.Firewall) { fw.Forwards[0].Addr = netip.Addr{} }, "one family"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fw := sample()
			tt.harm(&fw)
			if _, err := render(fw); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestComments: names are stable and unique, and the kernel's limit is kept.
func TestComments(t *testing.T) {
	want, err := render(sample())
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for chain, comments := range want.comments {
		for _, c := range comments {
			if len(c) > 127 || seen[c] {
				t.Errorf("chain %s: comment %q is too long or there twice", chain, c)
			}
			seen[c] = true
		}
	}
}
