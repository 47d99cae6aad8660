package snat

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func newManager(tb testing.TB, ns *namespace) *Manager {
	tb.Helper()
	m, err := New(Options{NetNS: ns.FD()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = m.Close() })
	return m
}

// disown makes the manager work as on a kernel without ownership.
func disown(tb testing.TB, ns *namespace, m *Manager) {
	tb.Helper()
	if err := m.Remove(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	m.owned, m.table.Flags = false, 0
}

func apply(tb testing.TB, m *Manager, fw plan.Firewall, prune, want bool) {
	tb.Helper()
	changed, err := m.Apply(tb.Context(), fw, prune)
	if err != nil {
		tb.Fatal(err)
	}
	if changed != want {
		tb.Fatalf("Apply wrote: %v, want %v", changed, want)
	}
}

// kernel reads the table anew.
func kernel(tb testing.TB, ns *namespace) content {
	tb.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		tb.Fatal(err)
	}
	bases := make(map[string]*hook)
	for _, ch := range skeleton(model.DefaultMask) {
		bases[ch.name] = ch.hook
	}
	c, err := read(conn, bases)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func holds(tb testing.TB, ns *namespace, fw plan.Firewall) {
	tb.Helper()
	want, err := render(fw)
	if err != nil {
		tb.Fatal(err)
	}
	got := kernel(tb, ns)
	if got.broken != "" || len(got.otherSets)+len(got.otherCounters) > 0 {
		tb.Fatalf("broken %q, foreign sets %q", got.broken, got.otherSets)
	}
	if diff := cmp.Diff(want.sets, got.sets); diff != "" {
		tb.Fatalf("elements (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want.comments, got.chains); diff != "" {
		tb.Fatalf("rules (-want +got):\n%s", diff)
	}
}

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func sample() plan.Firewall {
	pin := func(a string, id model.NICID, nic, as string) plan.Source {
		return plan.Source{Addr: addr(a), Verdict: plan.Pinned, NIC: id, NICName: nic, Address: addr(as)}
	}
	return plan.Firewall{
		Mask: model.DefaultMask,
		// eth3 is managed and has no address, eth2 the other way round.
		NICs: []plan.FirewallNIC{{ID: 1, Name: "eth0"}, {ID: 2, Name: "eth1", HostReplies: true}, {ID: 3, Name: "eth3"}},
		Uplinks: []plan.Uplink{
			{NIC: "eth0", Addr: addr("172.31.0.8")},
			{NIC: "eth1", Addr: addr("172.31.16.14")},
			{NIC: "eth1", Addr: addr("2001:db8::14")},
			{NIC: "eth2", Addr: addr("10.9.0.2")},
		},
		Locked: []string{"eip_bridge"}, Ours: []string{"eip_bridge"},
		Watched: []string{"docker0"},
		Inside:  []string{"docker0", "eip_bridge", "lo"}, Internal: []string{"docker1"},
		Local:      []netip.Addr{addr("172.18.0.100")},
		Own:        prefixes("172.17.0.5/32", "172.19.0.0/16", "fd00:19::/64"),
		OurSubnets: prefixes("172.19.0.0/16", "fd00:19::/64"), Masqueraded: prefixes("172.19.0.0/16", "fd00:19::/64"),
		ExceptBy: []plan.Exception{
			{Source: addr("172.19.0.100"), To: netip.MustParsePrefix("10.0.0.0/8")},
			{Source: addr("fd00:19::101"), To: netip.MustParsePrefix("2001:db8:5::/48")},
		},
		Except: prefixes("169.254.0.0/16", "fe80::/10"),
		Sources: []plan.Source{
			pin("172.17.0.5", 2, "eth1", "172.31.16.14"),
			pin("172.19.0.100", 1, "eth0", "172.31.0.8"), pin("172.19.0.101", 2, "eth1", "172.31.16.14"),
			{Addr: addr("172.19.0.102"), Verdict: plan.ViaHost},
			{Addr: addr("172.19.0.103"), Verdict: plan.Blocked},
			{Addr: addr("172.19.0.110"), Verdict: plan.Pending},
			pin("fd00:19::101", 2, "eth1", "2001:db8::14"),
			{Addr: addr("fd00:19::102"), Verdict: plan.ViaHost},
			{Addr: addr("fd00:19::103"), Verdict: plan.Blocked},
			{Addr: addr("fd00:19::110"), Verdict: plan.Pending},
		},
		Forwards: []plan.Forward{
			{Proto: model.TCP, Addr: addr("172.31.0.8"), Port: 8090, To: addrPort("172.19.0.100:8080")},
			{Proto: model.TCP, Addr: addr("172.31.16.14"), Port: 8090, To: addrPort("172.19.0.101:8080")},
			{Proto: model.UDP, Addr: addr("0.0.0.0"), Port: 53, To: addrPort("172.19.0.102:5353")},
			{Proto: model.SCTP, Addr: addr("172.31.0.8"), Port: 3868, To: addrPort("172.19.0.100:3868")},
			{Proto: model.TCP, Addr: addr("127.0.0.1"), Port: 8091, To: addrPort("172.19.0.101:8080")},
			{Proto: model.TCP, Addr: addr("2001:db8::14"), Port: 8090, To: addrPort("[fd00:19::101]:8080")},
			{Proto: model.UDP, Addr: addr("::"), Port: 53, To: addrPort("[fd00:19::102]:5353")},
		},
		NoForward: model.Families[:],
	}
}

func TestTable(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	apply(t, m, sample(), true, true)
	holds(t, ns, sample())
	golden(t, "testdata/table.golden", strings.Join(listing(t, ns, "inet"), ""))
}

// listing is what nft prints of our table of the family, by line.
func listing(t *testing.T, ns *namespace, family string) (lines []string) {
	t.Helper()
	for line := range strings.Lines(ns.run(t, "nft list table "+family+" eipnet")) {
		// nft names the owner by program, and prints the flags its own way in every version.
		line, _, _ = strings.Cut(line, " # progname")
		if !strings.HasPrefix(line, "\tflags") {
			lines = append(lines, strings.TrimRight(line, "\n")+"\n")
		}
	}
	return lines
}

// golden compares with a file, or with -update writes it.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestApplyTwiceWritesOnce(t *testing.T) {
	for _, owned := range []bool{true, false} {
		t.Run(fmt.Sprintf("owned %v", owned), func(t *testing.T) {
			ns := newNamespace(t)
			m := newManager(t, ns)
			if !owned {
				disown(t, ns, m)
			}
			apply(t, m, sample(), true, true)
			before := ns.run(t, "nft list ruleset")
			apply(t, m, sample(), true, false)
			apply(t, m, sample(), false, false)
			m.have = nil // what is read back is what was written
			apply(t, m, sample(), true, false)
			if diff := cmp.Diff(before, ns.run(t, "nft list ruleset")); diff != "" {
				t.Errorf("ruleset changed:\n%s", diff)
			}
		})
	}
}

func TestOwnership(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	if !m.Owned() {
		t.Skip("this kernel has no persistent table ownership")
	}
	apply(t, m, sample(), true, true)
	for _, command := range []string{"nft delete table inet eipnet", "nft flush chain inet eipnet forward", "nft delete element inet eipnet locked { eip_bridge }"} {
		if _, err := ns.exec(t.Context(), "", command); err == nil {
			t.Errorf("%s was let through", command)
		}
	}
	ns.run(t, "nft flush ruleset")
	holds(t, ns, sample())
	_, err := New(Options{NetNS: ns.FD()})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(fmt.Sprint(err), "another eipnet (netlink port") {
		t.Errorf("a second manager got %v", err)
	}
}

func TestAdopt(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	fw := sample()
	// The packet goes over the loopback, which is no way out where the host has addresses of its own.
	fw.Own, fw.Inside, fw.Local = prefixes("127.0.0.0/8"), []string{"docker0", "eip_bridge"}, nil
	apply(t, m, fw, true, true)
	ns.run(t, "nft add table inet probe")
	ns.nft(t, "table inet probe { chain out { type filter hook output priority -400; udp dport 9 notrack; }; }")
	ns.Do(func() { sendUDP(t, "127.0.0.1:9") })
	counted := counter(t, m, CounterGuardInvalid)
	if counted == 0 {
		t.Fatal("an untracked packet with a container's address was not counted")
	}
	if err := errors.Join(m.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Apply(t.Context(), fw, true); err == nil {
		t.Error("a closed manager applied")
	}
	m = newManager(t, ns)
	apply(t, m, fw, true, false)
	if got := counter(t, m, CounterGuardInvalid); got != counted {
		t.Errorf("counter after adoption: %d, want %d", got, counted)
	}
	fw.Mask = 0x00ff0000
	apply(t, m, fw, true, true) // other rules: chains are refilled in place
	if got := counter(t, m, CounterGuardInvalid); got != counted {
		t.Errorf("counter after a refill: %d, want %d", got, counted)
	}
	holds(t, ns, fw)
}

func counter(tb testing.TB, m *Manager, name string) uint64 {
	tb.Helper()
	all, err := m.Counters()
	if err != nil {
		tb.Fatal(err)
	}
	c, ok := all[name]
	if !ok || len(all) != len(counterNames()) {
		tb.Fatalf("counters: %v", all)
	}
	return c.Packets
}

func TestWithoutPrune(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	old := sample()
	apply(t, m, old, true, true)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = newManager(t, ns)
	// A new firewall with one pin moved, one not known any more, one freed, a wider subnet and NIC 3 in place of NIC 1.
	fw := sample()
	fw.NICs = []plan.FirewallNIC{{ID: 2, Name: "eth1"}, {ID: 3, Name: "eth2"}}
	fw.Own = prefixes("172.17.0.5/32", "172.18.0.0/15")
	fw.Sources = []plan.Source{
		{Addr: addr("172.19.0.101"), NIC: 3, NICName: "eth2", Address: addr("10.9.0.2")},
		{Addr: addr("172.19.0.103"), Verdict: plan.ViaHost},
		{Addr: addr("172.19.0.100"), Verdict: plan.Pending}, // somebody else's now
	}
	apply(t, m, fw, false, true)
	want, err := render(old)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := render(fw)
	if err != nil {
		t.Fatal(err)
	}
	got := kernel(t, ns)
	for _, s := range setSpecs() {
		for key, value := range want.sets[s.name] {
			if a, ok := netip.AddrFromSlice([]byte(s.about(key, value))); ok && slices.ContainsFunc(fw.Sources, func(s plan.Source) bool { return s.Addr == a }) {
				delete(want.sets[s.name], key)
			}
		}
	}
	for name, mine := range want.sets {
		for key := range changed.sets[name] {
			mine[key] = changed.sets[name][key]
		}
		if name == "own4" {
			mine = changed.sets[name] // the old subnet is part of the new one
		}
		if diff := cmp.Diff(mine, got.sets[name]); diff != "" {
			t.Errorf("set %s (-want +got):\n%s", name, diff)
		}
	}
	for _, c := range []string{"nic-1", "nic-2", "nic-3", "ct-1", "ct-2", "ct-3"} {
		if len(got.chains[c]) != 1 {
			t.Errorf("chain %s has rules %q", c, got.chains[c])
		}
	}
	apply(t, m, fw, false, false)
	apply(t, m, fw, true, true)
	holds(t, ns, fw)
}

func TestWithoutPruneKeepsThroughReplacement(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	disown(t, ns, m)
	apply(t, m, sample(), true, true)
	ns.run(t, "nft delete chain inet eipnet mark-pre", "nft add chain inet eipnet mark-pre { type filter hook input priority 0 ; }",
		"nft add chain inet eipnet x", "nft add element inet eipnet pin4 { 192.0.2.1 : goto x }")
	apply(t, m, plan.Firewall{Mask: model.DefaultMask}, false, true)
	holds(t, ns, sample())
}

func TestManySources(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	fw := sample()
	fw.Own = prefixes("10.0.0.0/8")
	fw.Sources = nil
	base := addr("10.0.0.1")
	for i := range 10_000 {
		n := fw.NICs[i%2]
		fw.Sources = append(fw.Sources, plan.Source{Addr: base, NIC: n.ID, NICName: n.Name, Address: addr("172.31.0.8")})
		base = base.Next()
	}
	timed := func(what string, prune, want bool) {
		t.Helper()
		start := time.Now()
		apply(t, m, fw, prune, want)
		t.Logf("%-40s %v", what, time.Since(start).Round(10*time.Microsecond))
	}
	apply(t, m, sample(), true, true)
	timed("10,000 sources (50,000 elements)", true, true)
	timed("no change", true, false)
	fw.Sources[17].Address = addr("172.31.0.9")
	timed("one pin's address changed", true, true)
	holds(t, ns, fw)
	m.have = nil
	timed("no change, table read anew", true, false)
	fw.Sources = slices.Delete(fw.Sources, 0, 9_990)
	timed("9,990 sources gone", true, true)
	timed("10 sources, no change", true, false)
	fw.Sources[0].Address = addr("172.31.0.10")
	timed("10 sources, one changed", true, true)
	holds(t, ns, fw)
	start := time.Now()
	if err := m.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%-40s %v", "remove", time.Since(start).Round(10*time.Microsecond))
	timed("skeleton and 10 sources from nothing", true, true)
}

func TestRemove(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	apply(t, m, sample(), true, true)
	for range 2 {
		if err := m.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := ns.run(t, "nft list ruleset"); got != "" {
		t.Errorf("left behind:\n%s", got)
	}
	apply(t, m, sample(), true, true)
	holds(t, ns, sample())
	if _, err := ns.exec(t.Context(), "", "nft delete table inet eipnet"); m.Owned() && err == nil {
		t.Error("the table that was made again is not owned")
	}
}

// TestReplaceOwned: a table from another version, adopted, has a set of another type.
func TestReplaceOwned(t *testing.T) {
	ns := newNamespace(t)
	m := newManager(t, ns)
	m.conn.AddTable(m.table)
	if err := m.conn.AddSet(&nftables.Set{Table: m.table, Name: "locked", KeyType: nftables.TypeIPAddr}, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.conn.Flush(); err != nil {
		t.Fatal(err)
	}
	apply(t, m, sample(), true, true)
	holds(t, ns, sample())
	apply(t, m, sample(), true, false)
}
