package route

import (
	"errors"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/netnstest"
	"github.com/eipnet/eipnet/internal/plan"
)

// sample is the skeleton of docs two-locks: two NICs in one subnet, eth0 the
// primary, and one locked bridge.
func sample() plan.Routing {
	pfx, ip := netip.MustParsePrefix, netip.MustParseAddr
	mask := model.DefaultMask
	r := plan.Routing{}
	for _, f := range model.Families {
		r.Rules = append(r.Rules,
			plan.Rule{Family: f, Priority: model.PriorityInside, Table: model.TableInside},
			plan.Rule{Family: f, Priority: model.PriorityMarked, Mark: mask.Of(1), Mask: mask, Table: 8101},
			plan.Rule{Family: f, Priority: model.PriorityMarked, Mark: mask.Of(2), Mask: mask, Table: 8102},
			plan.Rule{Family: f, Priority: model.PriorityViaHost, Mark: mask.ViaHost(), Mask: mask, Action: plan.Goto, Target: model.PriorityEnd},
			plan.Rule{Family: f, Priority: model.PriorityLocked, Iif: "eip_bridge", Table: model.TableNull},
			plan.Rule{Family: f, Priority: model.PriorityEnd, Action: plan.Nop},
		)
	}
	r.Rules = append(r.Rules,
		plan.Rule{Family: model.IPv4, Priority: model.PriorityHostRoutes, From: pfx("172.31.0.14/32"), Table: unix.RT_TABLE_MAIN, SuppressSpecific: true},
		plan.Rule{Family: model.IPv4, Priority: model.PriorityHostSource, From: pfx("172.31.0.14/32"), Table: 8102},
		plan.Rule{Family: model.IPv6, Priority: model.PriorityHostSource, From: pfx("2001:db8::/64"), Table: 8102},
	)
	v4, v6 := pfx("0.0.0.0/0"), pfx("::/0")
	r.Routes = []plan.Route{
		{Family: model.IPv4, Table: 8101, Dst: v4, Dev: "eth0", Via: ip("172.31.0.1")},
		{Family: model.IPv4, Table: 8101, Dst: pfx("172.31.0.0/20"), Dev: "eth0", Src: ip("172.31.0.8")},
		{Family: model.IPv4, Table: 8101, Dst: pfx("10.9.0.0/16"), Dev: "eth0", Via: ip("172.31.0.99"), Metric: 50},
		{Family: model.IPv4, Table: 8101, Dst: v4, Metric: plan.BackstopMetric, Unreachable: true},
		{Family: model.IPv6, Table: 8101, Dst: v6, Dev: "eth0", Via: ip("fe80::1")},
		{Family: model.IPv6, Table: 8101, Dst: pfx("2001:db8::/64"), Dev: "eth0", Metric: 256},
		{Family: model.IPv6, Table: 8101, Dst: v6, Metric: plan.BackstopMetric, Unreachable: true},
		{Family: model.IPv4, Table: 8102, Dst: v4, Dev: "eth1", Via: ip("169.254.0.1")}, // in no subnet of eth1
		{Family: model.IPv4, Table: 8102, Dst: v4, Metric: plan.BackstopMetric, Unreachable: true},
		{Family: model.IPv4, Table: model.TableNull, Dst: v4, Dev: "eipnull0"},
		{Family: model.IPv6, Table: model.TableNull, Dst: v6, Dev: "eipnull0"},
	}
	return r
}

func TestApplyPrintsTheSkeleton(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t)
		apply(t, m, sample(), true, true)
		tests := []struct{ args, want string }{
			{"-4 rule", `
0: from all lookup local
5100: from all lookup 8100
5110: from all fwmark 0x1000000/0xff000000 lookup 8101
5110: from all fwmark 0x2000000/0xff000000 lookup 8102
5180: from all fwmark 0xff000000/0xff000000 goto 5199
5190: from all iif eip_bridge lookup 8199
5199: from all nop
32700: from 172.31.0.14 lookup main suppress_prefixlength 0 suppress_ifgroup 45
32701: from 172.31.0.14 lookup 8102
32766: from all lookup main
32767: from all lookup default`},
			{"-6 rule", `
0: from all lookup local
5100: from all lookup 8100
5110: from all fwmark 0x1000000/0xff000000 lookup 8101
5110: from all fwmark 0x2000000/0xff000000 lookup 8102
5180: from all fwmark 0xff000000/0xff000000 goto 5199
5190: from all iif eip_bridge lookup 8199
5199: from all nop
32701: from 2001:db8::/64 lookup 8102
32766: from all lookup main`},
			{"-4 route show table 8101", `
10.9.0.0/16 via 172.31.0.99 dev eth0 metric 50 onlink
172.31.0.0/20 dev eth0 scope link src 172.31.0.8
default via 172.31.0.1 dev eth0 onlink
unreachable default metric 4294967295`},
			{"-6 route show table 8101", `
2001:db8::/64 dev eth0 metric 256 pref medium
default via fe80::1 dev eth0 metric 1024 onlink pref medium
unreachable default dev lo metric 4294967295 pref medium`},
			{"-4 route show table 8102", `
default via 169.254.0.1 dev eth1 onlink
unreachable default metric 4294967295`},
			{"-4 route show table 8199", `
default dev eipnull0 scope link`},
			{"-6 route show table 8199", `
default dev eipnull0 metric 1024 pref medium`},
		}
		for _, tt := range tests {
			if diff := cmp.Diff(strings.TrimSpace(tt.want), ipTool(t, tt.args)); diff != "" {
				t.Errorf("ip %s (-want +got):\n%s", tt.args, diff)
			}
		}
	})
}

func TestApplyTwiceChangesNothing(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t)
		apply(t, m, sample(), false, true)
		apply(t, m, sample(), false, false)
		apply(t, m, sample(), true, false)
		list := func() []string {
			t.Helper()
			got, err := m.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		if got, all := list(), len(sample().Rules)+len(sample().Routes); len(got) != all ||
			!slices.Contains(got, "rule 5190: from all iif eip_bridge lookup 8199") || !slices.Contains(got, "route default via 172.31.0.1 dev eth0 table 8101") {
			t.Errorf("%d rules and routes are listed, want %d: %q", len(got), all, got)
		}
		if err := m.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := list(); len(got) > 0 {
			t.Errorf("left: %q", got)
		}
		apply(t, m, plan.Routing{}, true, false)
		if got := ipTool(t, "-4 rule"); strings.Contains(got, "51") {
			t.Errorf("rules are left:\n%s", got)
		}
	})
}

func TestApplyWithoutPruneOnlyAdds(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t)
		apply(t, m, sample(), true, true)
		before := ipTool(t, "-4 rule") + ipTool(t, "-4 route show table 8101")
		other := plan.Routing{Routes: []plan.Route{{
			Family: model.IPv4, Table: 8101, Dst: netip.MustParsePrefix("0.0.0.0/0"), Dev: "eth1", Via: netip.MustParseAddr("172.31.0.2"),
		}, {
			Family: model.IPv4, Table: model.TableNull, Dst: netip.MustParsePrefix("0.0.0.0/0"), Dev: "eipnull0", Src: netip.MustParseAddr("172.31.0.8"),
		}}}
		apply(t, m, other, false, false)
		if diff := cmp.Diff(before, ipTool(t, "-4 rule")+ipTool(t, "-4 route show table 8101")); diff != "" {
			t.Errorf("rules and routes (-before +after):\n%s", diff)
		}
	})
}

// A NIC's new gateway or address is followed also while nothing is taken away.
func TestApplyWithoutPruneFollowsTheNIC(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t)
		apply(t, m, sample(), true, true)
		run(t, "addr add 172.31.0.9/20 dev eth0")
		v4 := netip.MustParsePrefix("0.0.0.0/0")
		now := plan.Routing{Routes: []plan.Route{
			{Family: model.IPv4, Table: 8101, Dst: v4, Dev: "eth0", Via: netip.MustParseAddr("172.31.0.2")},
			{Family: model.IPv4, Table: 8101, Dst: netip.MustParsePrefix("172.31.0.0/20"), Dev: "eth0", Src: netip.MustParseAddr("172.31.0.9")},
			{Family: model.IPv6, Table: 8101, Dst: netip.MustParsePrefix("::/0"), Dev: "eth0", Via: netip.MustParseAddr("fe80::2")},
		}}
		apply(t, m, now, false, true)
		for args, want := range map[string]string{
			"-4 route show table 8101": `
10.9.0.0/16 via 172.31.0.99 dev eth0 metric 50 onlink
172.31.0.0/20 dev eth0 scope link src 172.31.0.9
default via 172.31.0.2 dev eth0 onlink
unreachable default metric 4294967295`,
			"-6 route show table 8101": `
2001:db8::/64 dev eth0 metric 256 pref medium
default via fe80::2 dev eth0 metric 1024 onlink pref medium
unreachable default dev lo metric 4294967295 pref medium`,
		} {
			if diff := cmp.Diff(strings.TrimSpace(want), ipTool(t, args)); diff != "" {
				t.Errorf("ip %s (-want +got):\n%s", args, diff)
			}
		}
		apply(t, m, now, false, false)
	})
}

// Which NIC had which id is known from the tables that an earlier process left.
func TestNICIDs(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t)
		check := func(when string, want map[string]model.NICID) {
			t.Helper()
			got, err := m.NICIDs()
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%s (-want +got), %v:\n%s", when, err, diff)
			}
		}
		check("nothing", map[string]model.NICID{})
		apply(t, m, sample(), true, true)
		run(t, "route add default dev veth-other table 8104 proto static") // somebody else's
		check("two NICs", map[string]model.NICID{"eth0": 1, "eth1": 2})
		run(t, "route del default dev eth0 table 8101")
		run(t, "-6 route del default dev eth0 table 8101")
		check("no default route", map[string]model.NICID{"eth0": 1, "eth1": 2})
		run(t, "route add 10.8.0.0/16 dev eth1 table 8101 proto 201")
		run(t, "route add default dev eth0 table 8103 proto 201")
		check("a default route elsewhere", map[string]model.NICID{"eth0": 3, "eth1": 2})
		run(t, "link set eth1 name lan1")
		check("renamed", map[string]model.NICID{"eth0": 3, "lan1": 2})
	})
}

func TestRandomWalk(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t)
		rapid.Check(t, func(rt *rapid.T) {
			r := plan.Routing{
				Rules:  rapid.SliceOfN(rapid.Custom(drawRule), 0, 12).Draw(rt, "rules"),
				Routes: rapid.SliceOfNDistinct(rapid.Custom(drawOwnRoute), 0, 12, func(r plan.Route) slot { return slotOf(canonicalRoute(r)) }).Draw(rt, "routes"),
			}
			r.Rules = oneGotoPerSlot(r.Rules)
			if _, err := m.Apply(t.Context(), r, true); err != nil {
				rt.Fatalf("Apply: %v", err)
			}
			checkKernel(rt, m, r)
			changed, err := m.Apply(t.Context(), r, true)
			if changed || err != nil {
				rt.Fatalf("second Apply: changed %v, error %v", changed, err)
			}
		})
	})
}

func drawOwnRoute(t *rapid.T) plan.Route { return drawRoute(t, []string{"eth0", "eth1"}) }

// oneGotoPerSlot drops rules that differ in nothing but their target: the kernel holds only one of them.
func oneGotoPerSlot(rules []plan.Rule) []plan.Rule {
	seen := make(map[plan.Rule]bool)
	return slices.DeleteFunc(rules, func(r plan.Rule) bool {
		key := canonicalRule(r)
		key.Target = 0
		dup := seen[key]
		seen[key] = true
		return dup
	})
}

func checkKernel(t *rapid.T, m *Manager, want plan.Routing) {
	names := make(map[int]string)
	for _, name := range []string{"eth0", "eth1"} {
		l, err := m.handle.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		names[l.Attrs().Index] = name
	}
	haveRules, err := m.listRules()
	if err != nil {
		t.Fatal(err)
	}
	haveRoutes, err := m.listRoutes(names)
	if err != nil {
		t.Fatal(err)
	}
	got := plan.Routing{Rules: []plan.Rule{}, Routes: []plan.Route{}}
	for _, k := range haveRules {
		got.Rules = append(got.Rules, k.rule)
	}
	for _, k := range haveRoutes {
		got.Routes = append(got.Routes, k.route)
	}
	slices.SortFunc(got.Rules, compareAll)
	slices.SortFunc(got.Routes, compareRoutes)
	wantRules := canonicalRules(want.Rules)
	slices.SortFunc(wantRules, compareAll)
	if diff := cmp.Diff(plan.Routing{Rules: wantRules, Routes: canonicalRoutes(want.Routes)}, got, comparePrefixes); diff != "" {
		t.Fatalf("kernel (-want +got):\n%s", diff)
	}
}

func compareAll(a, b plan.Rule) int {
	return strings.Compare(a.Family.String()+describeRule(a), b.Family.String()+describeRule(b))
}

func TestForeignSurvives(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t)
		for _, args := range []string{
			"rule add pref 5110 fwmark 0x1000000/0xff000000 lookup 8101",          // as ours, other protocol
			"rule add pref 5120 from 10.1.1.1 lookup 77 proto 4",                  // inside our band
			"rule add pref 5250 from all lookup 52 proto 201",                     // our protocol, outside
			"rule add pref 5191 iif eip_bridge prohibit",                          // not ours
			"rule add pref 32701 from 10.1.1.2 lookup 77",                         // where ours for host sockets are
			"rule add pref 32702 from 10.1.1.3 lookup 77 proto 201",               //
			"-6 rule add pref 5190 from all lookup 52",                            //
			"route add 10.1.0.0/16 dev eth0 table 8101 proto static",              // in our table
			"route add 10.2.0.0/16 dev eth0 table 77",                             //
			"route add 10.3.0.0/16 dev eth0",                                      //
			"-6 route add 2001:db8:77::/64 dev eth0 table 8101 proto static",      //
			"route add unreachable default table 8102 metric 4294967295 proto 99", // in the place of ours
		} {
			run(t, args)
		}
		before := everything(t)
		if _, err := m.Apply(t.Context(), sample(), true); err == nil || !strings.Contains(err.Error(), "not ours is in its place") {
			t.Errorf("Apply: error %v, want one about the route in the place of ours", err)
		}
		apply2 := everything(t)
		for line := range strings.SplitSeq(before, "\n") {
			if !strings.Contains(apply2, line) {
				t.Errorf("Apply lost %q", line)
			}
		}
		if err := m.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, everything(t)); diff != "" {
			t.Errorf("after Remove (-before +after):\n%s", diff)
		}
	})
}

func everything(t *testing.T) string {
	return ipTool(t, "-4 rule") + "\n" + ipTool(t, "-6 rule") + "\n" + ipTool(t, "-4 route show table all") + "\n" + ipTool(t, "-6 route show table all")
}

func TestMissingDeviceIsReportedAndTheRestApplied(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t)
		r := sample()
		v4 := netip.MustParsePrefix("0.0.0.0/0")
		r.Routes = slices.Insert(r.Routes, 0, plan.Route{Family: model.IPv4, Table: 8103, Dst: v4, Dev: "eth9", Via: netip.MustParseAddr("172.31.0.1")})
		changed, err := m.Apply(t.Context(), r, true)
		if err == nil || !strings.Contains(err.Error(), "adding route default via 172.31.0.1 dev eth9 table 8103: there is no link eth9") || !changed {
			t.Errorf("Apply: changed %v, error %v", changed, err)
		}
		if got := ipTool(t, "-4 route show table 8102"); !strings.Contains(got, "default via 169.254.0.1 dev eth1 onlink") {
			t.Errorf("table 8102 lacks its default route:\n%s", got)
		}
		if got := ipTool(t, "-4 rule"); !strings.Contains(got, "5199: from all nop") {
			t.Errorf("rules are missing:\n%s", got)
		}
	})
}

func TestDeviceErrorsAreToldFromOthers(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t)
		v4, v6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
		run(t, "link set eth1 down")
		run(t, "link set eipnull0 down")
		run(t, "route add unreachable default table 8101 metric 4294967295 proto 99")
		tests := []struct {
			name   string
			route  plan.Route
			device bool
		}{
			{"missing", plan.Route{Table: 8103, Dst: v4, Dev: "eth9", Via: netip.MustParseAddr("172.31.0.1")}, true},
			{"down", plan.Route{Table: 8102, Dst: v4, Dev: "eth1", Via: netip.MustParseAddr("172.31.0.1")}, true},
			{"down, on the link", plan.Route{Table: 8102, Dst: netip.MustParsePrefix("172.31.0.0/20"), Dev: "eth1"}, true},
			{"IPv6, down", plan.Route{Family: model.IPv6, Table: 8102, Dst: v6, Dev: "eth1", Via: netip.MustParseAddr("fe80::1")}, true},
			{"null device", plan.Route{Table: model.TableNull, Dst: v4, Dev: model.NullDevice}, false},
			{"another's place", plan.Route{Table: 8101, Dst: v4, Metric: plan.BackstopMetric, Unreachable: true}, false},
			{"source of nobody", plan.Route{Table: 8101, Dst: v4, Dev: "eth0", Src: netip.MustParseAddr("10.9.9.9")}, false},
		}
		var all plan.Routing
		for _, tt := range tests {
			all.Routes = append(all.Routes, tt.route)
			_, err := m.Apply(t.Context(), plan.Routing{Routes: []plan.Route{tt.route}}, true)
			if err == nil || errors.Is(err, ErrDevice) != tt.device {
				t.Errorf("%s: ErrDevice is %v, want %v: %v", tt.name, errors.Is(err, ErrDevice), tt.device, err)
			}
		}
		_, err := m.Apply(t.Context(), all, true)
		var joined interface{ Unwrap() []error }
		if !errors.As(err, &joined) {
			t.Fatalf("not joined: %v", err)
		}
		var device int
		for _, e := range joined.Unwrap() {
			if errors.Is(e, ErrDevice) {
				device++
			}
		}
		if len(joined.Unwrap()) != len(tests) || device != 4 {
			t.Errorf("%d of %d are ErrDevice:\n%v", device, len(joined.Unwrap()), err)
		}
	})
}

func TestDescribeRuleTellsTheFamily(t *testing.T) {
	rule := plan.Rule{Priority: 5100, Table: model.TableInside}
	if got, want := describeRule(rule), "5100: from all lookup 8100"; got != want {
		t.Errorf("IPv4: %q, want %q", got, want)
	}
	rule.Family = model.IPv6
	if got, want := describeRule(rule), "-6 5100: from all lookup 8100"; got != want {
		t.Errorf("IPv6: %q, want %q", got, want)
	}
}

func TestCloseTwice(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t) // closes once more
		m.Close()
		m.Close()
	})
}

func TestDeletedAndForgedIsHealed(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t)
		apply(t, m, sample(), true, true)
		run(t, "route add 10.78.0.0/16 dev veth-other table 9000 proto 201") // somebody else's table
		before := everything(t)
		for _, args := range []string{
			"rule del pref 5110 fwmark 0x2000000/0xff000000",
			"rule del pref 5180",
			"-6 rule del pref 5190",
			"rule add pref 5101 from all lookup main proto 201",    // leads everybody out
			"rule add pref 5190 iif eip_bridge prohibit proto 201", // not expressible
			"rule add pref 5199 from all iif eth0 nop proto 201",   // a like one
			"rule add pref 32701 from 10.1.1.1 lookup 8102 proto 201",
			"rule del pref 32700",
			"rule add pref 5110 to 10.0.0.1 lookup 8101 proto 201", //
			"route del default table 8102 via 169.254.0.1",         //
			"route append default via 172.31.0.77 dev eth0 onlink table 8101 proto 201",
			"route add 10.77.0.0/16 table 8101 proto 201 nexthop via 172.31.0.1 dev eth0 nexthop via 172.31.0.1 dev eth1 onlink",
			"-6 route append default via fe80::2 dev eth0 onlink table 8101 proto 201",
			"route replace 172.31.0.0/20 dev eth1 scope link table 8101 proto 201",
			"route add 10.78.0.0/16 dev veth-other table 8150 proto 201",
		} {
			run(t, args)
		}
		apply(t, m, sample(), true, true)
		if diff := cmp.Diff(before, everything(t)); diff != "" {
			t.Errorf("after healing (-before +after):\n%s", diff)
		}
		apply(t, m, sample(), true, false)
	})
}

func TestGotoTargetChanges(t *testing.T) {
	netnstest.Run(t, func() {
		m := setup(t)
		r := sample()
		run(t, "rule add pref 5180 fwmark 0xff000000/0xff000000 goto 5195 proto 201")
		apply(t, m, r, true, true)
		if got := ipTool(t, "-4 rule"); !strings.Contains(got, "goto 5199") || strings.Contains(got, "5195") {
			t.Errorf("rules:\n%s", got)
		}
	})
}

func TestLockOneComesFirstAndGoesLast(t *testing.T) {
	rules := canonicalRules(sample().Rules)
	var order []int
	for _, r := range rules {
		if r.Family == model.IPv4 {
			order = append(order, r.Priority)
		}
	}
	want := []int{5199, 5190, 5100, 5110, 5110, 5180, 32700, 32701}
	if diff := cmp.Diff(want, order); diff != "" {
		t.Errorf("order of adding (-want +got):\n%s", diff)
	}
}

// setup makes eth0, eth1, veth-other and eipnull0, and a manager.
func setup(t testing.TB) *Manager {
	t.Helper()
	for _, args := range []string{
		"link add eth0 type veth peer name eth0-far", "link add eth1 type veth peer name eth1-far", "link add veth-other type veth peer name veth-far",
		"link add eipnull0 type bridge", "link add eip_bridge type bridge",
		"link set eth0 up", "link set eth0-far up", "link set eth1 up", "link set eth1-far up", "link set veth-other up", "link set veth-far up", "link set eipnull0 up",
		"addr add 172.31.0.8/20 dev eth0", "addr add 172.31.0.14/20 dev eth1",
		"addr add 2001:db8::8/64 dev eth0 nodad", "addr add 2001:db8::8/64 dev eth1 nodad",
	} {
		run(t, args)
	}
	m, err := New(Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func apply(t *testing.T, m *Manager, r plan.Routing, prune, wantChanged bool) {
	t.Helper()
	changed, err := m.Apply(t.Context(), r, prune)
	if err != nil || changed != wantChanged {
		t.Fatalf("Apply(prune %v): changed %v, error %v; want changed %v", prune, changed, err, wantChanged)
	}
}

func run(t testing.TB, args string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
	return string(out)
}

// ipTool returns what the ip tool prints, without our protocol, states of links and superfluous spaces.
func ipTool(t testing.TB, args string) string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(run(t, args)) {
		fields := slices.DeleteFunc(strings.Fields(line), func(f string) bool { return f == "linkdown" })
		line = strings.ReplaceAll(strings.Join(fields, " "), " proto 201", "")
		if strings.HasPrefix(line, "fe80::") || strings.HasPrefix(line, "2001:db8::/64 dev eth0 proto kernel") || strings.Contains(line, " table local ") {
			continue // the kernel's own, which come a little after the links
		}
		lines = append(lines, line)
	}
	if strings.Contains(args, "route") {
		slices.Sort(lines)
	}
	return strings.Join(lines, "\n")
}

func BenchmarkApplyUnchanged(b *testing.B) {
	netnstest.Run(b, func() {
		m := setup(b)
		r := sample()
		if _, err := m.Apply(b.Context(), r, true); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if changed, err := m.Apply(b.Context(), r, true); changed || err != nil {
				b.Fatal(changed, err)
			}
		}
	})
}
