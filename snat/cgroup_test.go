package snat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// grouped is the sample with containers on the host's network.
func grouped() plan.Firewall {
	fw := sample()
	fw.Cgroups = true
	fw.NICs[0].Addr4, fw.NICs[1].Addr4, fw.NICs[1].Addr6 = addr("172.31.0.8"), addr("172.31.16.14"), addr("2001:db8::14")
	fw.Groups = []plan.Group{
		{Cgroup: model.Cgroup{ID: 1 << 40, Level: 2}, NIC: 2, Except: prefixes("10.0.0.0/8", "2001:db8:5::/48")},
		{Cgroup: model.Cgroup{ID: 1<<40 + 1, Level: 2}, Verdict: plan.Blocked},
		{Cgroup: model.Cgroup{ID: 1<<40 + 2, Level: 3}, NIC: 1},
	}
	return fw
}

// needCgroups skips a test that the kernel cannot run; where CI is set it fails.
func needCgroups(t *testing.T) {
	t.Helper()
	if err := ProbeCgroups(newNamespace(t).FD()); err != nil {
		lacking(t, err)
	}
}

func lacking(t *testing.T, why any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%v, and CI is set", why)
	}
	t.Skip(why)
}

// TestProbeCgroups: whatever the kernel says to it, nothing of the question stays.
func TestProbeCgroups(t *testing.T) {
	ns := newNamespace(t)
	ns.nft(t, "table inet other { chain c { }; }")
	before := ns.run(t, "nft list ruleset")
	t.Log("the kernel says:", ProbeCgroups(ns.FD()))
	if diff := cmp.Diff(before, ns.run(t, "nft list ruleset")); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

const cgroupGolden = "testdata/cgroup.golden"

// TestCgroupTable: what is added for containers on the host's network, and only there.
func TestCgroupTable(t *testing.T) {
	needCgroups(t)
	ns := newNamespace(t)
	m := newManager(t, ns)
	apply(t, m, grouped(), true, true)
	holds(t, ns, grouped())
	apply(t, m, grouped(), true, false)
	var blocks []string
	for block := range strings.SplitSeq(ns.run(t, "nft list table inet eipnet"), "\n\n") {
		if head, _, _ := strings.Cut(strings.TrimSpace(block), "{"); strings.Contains(head, "cgroup-") || strings.Contains(head, "group-") {
			blocks = append(blocks, strings.TrimSuffix(strings.TrimRight(block, "\n"), "\n}"))
		}
	}
	golden(t, cgroupGolden, strings.Join(blocks, "\n\n")+"\n")
	fw := sample() // what the kernel has is no reason to keep it
	apply(t, m, fw, false, false)
	apply(t, m, fw, true, true)
	holds(t, ns, fw)
}

// TestCgroupLevelGone: the chain is written once when the last container on a level is gone, and not in every
// pass from then on.
func TestCgroupLevelGone(t *testing.T) {
	needCgroups(t)
	ns := newNamespace(t)
	m := newManager(t, ns)
	fw := grouped()
	apply(t, m, fw, true, true)
	for len(fw.Groups) > 0 {
		fw.Groups = fw.Groups[:len(fw.Groups)-1]
		apply(t, m, fw, true, true)
		apply(t, m, fw, true, false)
		holds(t, ns, fw)
	}
}

// TestCgroupRules: the checksum of each rule is that of the golden file, on
// kernels that cannot show it, too.
func TestCgroupRules(t *testing.T) {
	text, err := os.ReadFile(cgroupGolden)
	if err != nil {
		t.Fatal(err)
	}
	on, err := render(grouped())
	if err != nil {
		t.Fatal(err)
	}
	off, err := render(sample())
	if err != nil {
		t.Fatal(err)
	}
	added := 0
	for chain, comments := range on.comments {
		if before, both := off.comments[chain]; both {
			if diff := cmp.Diff(before, comments); diff != "" {
				t.Errorf("chain %s is another one (-without +with):\n%s", chain, diff)
			}
			continue
		}
		for _, c := range comments {
			added++
			if !strings.Contains(string(text), fmt.Sprintf("comment %q", c)) {
				t.Errorf("%s has no rule %s", cgroupGolden, c)
			}
		}
	}
	if n := strings.Count(string(text), "comment"); n != added {
		t.Errorf("%s has %d rules, want %d", cgroupGolden, n, added)
	}
	for name := range off.sets {
		if strings.HasPrefix(name, "cgroup-") {
			t.Errorf("set %s is there without need", name)
		}
	}
}

// TestCgroupKept: before Docker is heard nothing of what an earlier process pinned is let go.
func TestCgroupKept(t *testing.T) {
	needCgroups(t)
	ns := newNamespace(t)
	first := newManager(t, ns)
	apply(t, first, grouped(), true, true)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	m := newManager(t, ns)
	fw := sample()
	apply(t, m, fw, false, false)
	fw = grouped()
	fw.Groups = nil
	apply(t, m, fw, false, false)
	holds(t, ns, grouped())
	fw.Groups = grouped().Groups[2:]
	apply(t, m, fw, true, true)
	holds(t, ns, fw)
}

func TestCgroupRefuses(t *testing.T) {
	for name, harm := range map[string]func(*plan.Group){
		"the root":    func(g *plan.Group) { g.Cgroup.Level = 0 },
		"no id":       func(g *plan.Group) { g.Cgroup.ID = 0 },
		"too deep":    func(g *plan.Group) { g.Cgroup.Level = maxLevel + 1 },
		"unknown NIC": func(g *plan.Group) { g.NIC = 9 },
	} {
		fw := grouped()
		harm(&fw.Groups[0])
		if _, err := render(fw); err == nil || !strings.Contains(err.Error(), "cgroup") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// group is a cgroup of its own, for the test's time.
type group struct {
	model.Cgroup
	dir string
}

// newGroup makes one on level 2, or skips where no hierarchy of version 2 is mounted.
func newGroup(t *testing.T, name string) group {
	t.Helper()
	root := "/sys/fs/cgroup"
	for _, dir := range []string{root, root + "/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		parent := filepath.Join(dir, fmt.Sprintf("eipnet-test-%d", os.Getpid()))
		g := group{dir: filepath.Join(parent, name)}
		if err := os.MkdirAll(g.dir, 0o755); err != nil {
			lacking(t, fmt.Errorf("making a cgroup: %w", err))
		}
		t.Cleanup(func() { _ = errors.Join(os.Remove(g.dir), os.Remove(parent)) })
		var st unix.Stat_t
		if err := unix.Stat(g.dir, &st); err != nil {
			t.Fatal(err)
		}
		g.Cgroup = model.Cgroup{ID: st.Ino, Level: 2}
		return g
	}
	lacking(t, "no hierarchy of cgroups version 2")
	return group{}
}

// in runs fn with this process in the group: a socket's cgroup is that of whoever made it.
func (g group) in(t *testing.T, fn func()) {
	t.Helper()
	move := func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, path, _ := strings.Cut("\n"+string(before), "\n0::")
	path, _, _ = strings.Cut(path, "\n")
	move(g.dir)
	defer move(filepath.Join(filepath.Dir(filepath.Dir(g.dir)), path))
	fn()
}

// TestCgroupPackets: what containers on the host's network send leaves by their
// NIC with its address, or not at all, and what others send as before.
func TestCgroupPackets(t *testing.T) {
	needCgroups(t)
	pinned, held := newGroup(t, "pinned"), newGroup(t, "held")
	l := newLab(t, false)
	serve(t, l.world, 80)
	serve(t, l.container, 8080)
	serve(t, l.host, 22)
	l.fw.Cgroups = true
	for i, n := range []string{"172.31.0.8", "172.31.16.14"} {
		l.fw.NICs[i].Addr4, l.fw.NICs[i].Addr6 = addr(n), addr(six(n))
	}
	l.fw.Groups = []plan.Group{
		{Cgroup: pinned.Cgroup, NIC: 2, Except: prefixes("198.51.100.2/32", six("198.51.100.2/32"))},
		{Cgroup: held.Cgroup, Verdict: plan.Blocked},
	}
	apply(t, l.m, l.fw, true, true)

	pinned.in(t, func() { serve(t, l.host, 2202) })
	h, w := l.host, worldAddr
	l.calls(t, []call{{name: "a program of the host", ns: h, to: w, port: 80, seen: "172.31.0.8"}})
	pinned.in(t, func() {
		l.calls(t, []call{
			{name: "pinned", ns: h, to: w, port: 80, seen: "172.31.16.14"},
			{name: "pinned, with the primary's address", ns: h, from: "172.31.0.8", to: w, port: 80, seen: "172.31.16.14"},
			{name: "pinned, with the NIC's second address", ns: h, from: "172.31.16.15", to: w, port: 80, seen: "172.31.16.14"},
			{name: "not by the VPN that main says", ns: h, to: "203.0.113.2", port: 80, seen: "172.31.16.14"},
			{name: "excepted for all", ns: h, to: "198.51.100.1", port: 80, seen: "172.31.0.8"},
			{name: "excepted for it", ns: h, to: "198.51.100.2", port: 80, seen: "172.31.0.8"},
			{name: "itself", ns: h, to: "127.0.0.1", port: 22, seen: "127.0.0.1"},
			{name: "its other address", ns: h, to: "172.31.0.8", port: 22, seen: "172.31.0.8"},
			{name: "a container", ns: h, to: "172.19.0.102", port: 8080, seen: "172.19.0.1"},
			{name: "a published port", ns: h, to: "172.31.0.8", port: 8090, seen: "172.31.0.8"},
		})
	})
	held.in(t, func() {
		l.calls(t, []call{
			{name: "held", ns: h, to: w, port: 80, err: syscall.EHOSTUNREACH, counter: CounterRefused},
			{name: "held from what is excepted, too", ns: h, to: "198.51.100.1", port: 80, err: syscall.EHOSTUNREACH, counter: CounterRefused},
			{name: "held reaches itself", ns: h, to: "127.0.0.1", port: 22, seen: "127.0.0.1"},
		})
	})
	l.calls(t, []call{
		{name: "called by the primary", ns: l.world, from: w, to: "172.31.0.8", port: 2202, seen: w},
		{name: "called by its NIC", ns: l.world, from: "203.0.113.2", to: "172.31.16.14", port: 2202, seen: "203.0.113.2"},
	})
	t.Run("connections", func(t *testing.T) { l.groupConnections(t, pinned) })
	pinned.in(t, func() {
		t.Run("ip rules lost", func(t *testing.T) {
			l.unroute(t)
			l.calls(t, []call{{name: "pinned", ns: h, to: w, port: 80, err: errTimeout, counter: CounterGuardPinned}})
		})
	})
}

// groupConnections looks at what has begun before something changes.
func (l *lab) groupConnections(t *testing.T, g group) {
	t.Helper()
	open := func() (c net.Conn) {
		l.host.Do(func() {
			u, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(worldAddr), 7)))
			if err != nil {
				t.Fatal(err)
			}
			c = u
		})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	var world net.PacketConn
	l.world.Do(func() {
		var err error
		if world, err = net.ListenPacket("udp", worldAddr+":7"); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = world.Close() })
	// sends reports who the world saw within a time, or nobody.
	sends := func(c net.Conn, within time.Duration) string {
		if _, err := c.Write([]byte("x")); err != nil {
			_, _ = c.Write([]byte("x")) // the first only told of the refusal before
		}
		_ = world.SetReadDeadline(deadline(within))
		_, from, err := world.ReadFrom(make([]byte, 8))
		if err != nil {
			return ""
		}
		return netip.MustParseAddrPort(from.String()).Addr().String()
	}
	expect := func(what string, c net.Conn, want string) {
		t.Helper()
		within := silence
		if want != "" {
			within = patience
		}
		if got := sends(c, within); got != want {
			t.Errorf("%s: seen as %q, want %q", what, got, want)
		}
		l.nothingForeign(t)
	}
	var began, other net.Conn
	groups := l.fw.Groups
	l.fw.Groups = groups[1:]
	apply(t, l.m, l.fw, true, true)
	g.in(t, func() { began = open() })
	expect("before there is a pin", began, "172.31.0.8")
	l.fw.Groups = groups
	apply(t, l.m, l.fw, true, true)
	expect("begun before there was a pin", began, "")
	g.in(t, func() { other = open() })
	expect("begun with it", other, "172.31.16.14")
	l.fw.Groups = []plan.Group{{Cgroup: g.Cgroup, NIC: 1}}
	apply(t, l.m, l.fw, true, true)
	expect("pinned to another NIC since", other, "")
	l.fw.Groups = nil
	apply(t, l.m, l.fw, true, true)
	expect("the container is gone", other, "172.31.16.14")
	nics := l.fw.NICs
	l.fw.NICs = nics[:1]
	l.fw.Sources = nil
	apply(t, l.m, l.fw, true, true)
	expect("its NIC is not managed any more", other, "")
	l.fw.NICs, l.fw.Groups = nics, groups
	apply(t, l.m, l.fw, true, true)
}

func deadline(d time.Duration) time.Time { return time.Now().Add(d) }
