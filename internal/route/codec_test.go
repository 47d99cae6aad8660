package route

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

var comparePrefixes = cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})

func TestRuleRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := canonicalRule(drawRule(t))
		var body bytes.Buffer
		for _, d := range encodeRule(want) {
			body.Write(d.Serialize())
		}
		k, ours, err := decodeRule(body.Bytes())
		if err != nil || !ours || !k.exact {
			t.Fatalf("decodeRule: ours %v, exact %v, error %v", ours, k.exact, err)
		}
		if diff := cmp.Diff(want, k.rule, comparePrefixes); diff != "" {
			t.Fatalf("rule (-want +got):\n%s", diff)
		}
	})
}

func TestRouteRoundTrip(t *testing.T) {
	const index = 7
	rapid.Check(t, func(t *rapid.T) {
		want := canonicalRoute(drawRoute(t, []string{"eth0"}))
		k := fromKernelRoute(*toKernelRoute(want, index), map[int]string{index: "eth0"})
		if !k.exact {
			t.Fatalf("%s: not exact", describeRoute(want))
		}
		if diff := cmp.Diff(want, k.route, comparePrefixes); diff != "" {
			t.Fatalf("route (-want +got):\n%s", diff)
		}
	})
}

func TestDecodeRuleForeign(t *testing.T) {
	base := plan.Rule{Family: model.IPv4, Priority: model.PriorityMarked, Table: 8101}
	tests := []struct {
		name        string
		change      func(hdr *nl.RtMsg) []nl.NetlinkRequestData
		ours, exact bool
	}{
		{"ours", func(*nl.RtMsg) []nl.NetlinkRequestData { return nil }, true, true},
		{"other protocol", func(*nl.RtMsg) []nl.NetlinkRequestData {
			return []nl.NetlinkRequestData{nl.NewRtAttr(nl.FRA_PROTOCOL, nl.Uint8Attr(unix.RTPROT_STATIC))}
		}, false, true},
		{"at the priority of host sockets", func(*nl.RtMsg) []nl.NetlinkRequestData {
			return []nl.NetlinkRequestData{nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(model.PriorityHostSource))}
		}, true, true},
		{"outside the band", func(*nl.RtMsg) []nl.NetlinkRequestData {
			return []nl.NetlinkRequestData{nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(model.PriorityLast+1))}
		}, false, true},
		{"prohibit", func(h *nl.RtMsg) []nl.NetlinkRequestData { h.Type = nl.FR_ACT_PROHIBIT; return nil }, true, false},
		{"inverted", func(h *nl.RtMsg) []nl.NetlinkRequestData { h.Flags = fibRuleInvert; return nil }, true, false},
		{"with an outgoing device", func(*nl.RtMsg) []nl.NetlinkRequestData {
			return []nl.NetlinkRequestData{nl.NewRtAttr(nl.FRA_OIFNAME, nl.ZeroTerminated("eth0"))}
		}, true, false},
		{"with another suppressor", func(*nl.RtMsg) []nl.NetlinkRequestData {
			return []nl.NetlinkRequestData{nl.NewRtAttr(nl.FRA_SUPPRESS_PREFIXLEN, nl.Uint32Attr(8))}
		}, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data := encodeRule(base)
			data = append(data, tt.change(data[0].(*nl.RtMsg))...)
			var body bytes.Buffer
			for _, d := range data {
				body.Write(d.Serialize())
			}
			k, ours, err := decodeRule(body.Bytes())
			if err != nil || ours != tt.ours || k.exact != tt.exact {
				t.Errorf("decodeRule: ours %v, exact %v, error %v; want %v, %v, nil", ours, k.exact, err, tt.ours, tt.exact)
			}
		})
	}
}

var (
	addrs4    = []string{"172.31.0.8", "172.31.0.14", "10.0.0.1", "192.0.2.7"}
	addrs6    = []string{"2001:db8::8", "2001:db8::14", "fd00::1", "fe80::1"}
	prefixes4 = []string{"0.0.0.0/0", "172.31.0.0/20", "10.0.0.0/8", "192.0.2.7/32"}
	prefixes6 = []string{"::/0", "2001:db8::/64", "fd00::/8", "2001:db8::7/128"}
)

func drawRule(t *rapid.T) plan.Rule {
	r := plan.Rule{
		Family:   rapid.SampledFrom(model.Families[:]).Draw(t, "family"),
		Priority: rapid.OneOf(rapid.IntRange(model.PriorityFirst, model.PriorityEnd-1), rapid.IntRange(model.PriorityHostRoutes, model.PriorityHostSource)).Draw(t, "priority"),
		Iif:      rapid.SampledFrom([]string{"", "", "eip_bridge", "interfacename15"}).Draw(t, "iif"),
		Action:   rapid.SampledFrom([]plan.Action{plan.Lookup, plan.Lookup, plan.Lookup, plan.Goto, plan.Nop}).Draw(t, "action"),
	}
	prefixes := prefixes4
	if r.Family == model.IPv6 {
		prefixes = prefixes6
	}
	if rapid.Bool().Draw(t, "has from") {
		r.From = netip.MustParsePrefix(rapid.SampledFrom(prefixes).Draw(t, "from"))
	}
	if rapid.Bool().Draw(t, "marked") {
		r.Mask = model.DefaultMask
		r.Mark = r.Mask.Of(model.NICID(rapid.IntRange(0, 255).Draw(t, "mark")))
	}
	switch r.Action {
	case plan.Lookup:
		r.Table = model.Table(rapid.SampledFrom([]int{254, 8100, 8101, 8102, 8199}).Draw(t, "table"))
		r.SuppressSpecific = rapid.Bool().Draw(t, "suppress")
	case plan.Goto:
		r.Target = rapid.IntRange(r.Priority+1, max(r.Priority+1, model.PriorityEnd)).Draw(t, "target")
	}
	return r
}

func drawRoute(t *rapid.T, devs []string) plan.Route {
	r := plan.Route{
		Family: rapid.SampledFrom(model.Families[:]).Draw(t, "family"),
		Table:  model.Table(rapid.IntRange(8100, 8103).Draw(t, "table")),
		Metric: rapid.SampledFrom([]int{0, 0, 100, 1024}).Draw(t, "metric"),
	}
	prefixes, addrs := prefixes4, addrs4
	if r.Family == model.IPv6 {
		prefixes, addrs = prefixes6, addrs6
	}
	r.Dst = netip.MustParsePrefix(rapid.SampledFrom(prefixes).Draw(t, "dst"))
	if rapid.IntRange(0, 4).Draw(t, "unreachable") == 0 {
		r.Unreachable, r.Metric = true, plan.BackstopMetric
		return r
	}
	r.Dev = rapid.SampledFrom(devs).Draw(t, "dev")
	if rapid.Bool().Draw(t, "gatewayed") {
		r.Via = netip.MustParseAddr(rapid.SampledFrom(addrs[2:]).Draw(t, "via"))
	}
	if rapid.Bool().Draw(t, "has source") {
		r.Src = netip.MustParseAddr(addrs[0])
	}
	return r
}
