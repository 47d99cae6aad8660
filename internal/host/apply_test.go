package host

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/eipnet/eipnet/internal/delay"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/netnstest"
	"github.com/eipnet/eipnet/internal/plan"
)

func apply(t testing.TB, h *Host, l plan.Links, s []plan.Sysctl, prune, want bool) {
	t.Helper()
	changed, err := h.Apply(t.Context(), l, s, prune)
	if err != nil || changed != want {
		t.Fatalf("Apply: changed %v, error %v; want changed %v", changed, err, want)
	}
}

func link(t testing.TB, h *Host, name string) netlink.Link {
	t.Helper()
	l, err := h.handle.LinkByName(name)
	if err != nil {
		t.Fatalf("link %s: %v", name, err)
	}
	return l
}

func absent(h *Host, name string) bool {
	_, err := h.handle.LinkByName(name)
	return isNotFound(err)
}

func TestSysctlIsSetAndPutBack(t *testing.T) {
	const rp, fwd = "net/ipv4/conf/eth0.1/rp_filter", "net/ipv4/ip_forward"
	netnstest.Run(t, func() {
		ip(t, "link add eth0.1 type veth peer name far")
		setSysctl(t, rp, "1")
		setSysctl(t, fwd, "0")
		h, m := open(t, Options{})
		want := []plan.Sysctl{{Path: rp, From: []string{"1"}, Value: "2"}, {Path: fwd, From: []string{"0"}, Value: "1"}}
		apply(t, h, plan.Links{}, want, true, true)
		apply(t, h, plan.Links{}, want, true, false)
		if a, b := sysctlValue(t, rp), sysctlValue(t, fwd); a != "2" || b != "1" {
			t.Errorf("rp_filter %s, ip_forward %s", a, b)
		}
		if !observe(t, h).ForwardingOurs {
			t.Error("ForwardingOurs is false")
		}
		apply(t, h, plan.Links{}, nil, false, false) // without prune nothing is put back

		setSysctl(t, rp, "0") // somebody's choice: it serves as well, and stays
		apply(t, h, plan.Links{}, want, true, false)
		apply(t, h, plan.Links{}, nil, true, true)
		if a, b := sysctlValue(t, rp), sysctlValue(t, fwd); a != "0" || b != "0" {
			t.Errorf("after putting back: rp_filter %s, ip_forward %s", a, b)
		}
		if diff := cmp.Diff([]string(nil), m.OriginalKeys()); diff != "" {
			t.Errorf("originals (-want +got):\n%s", diff)
		}

		setSysctl(t, rp, "1")
		apply(t, h, plan.Links{}, want[:1], true, true)
		ip(t, "link del eth0.1")
		apply(t, h, plan.Links{}, nil, true, false)
		if keys := m.OriginalKeys(); len(keys) > 0 {
			t.Errorf("originals of a link that is gone: %v", keys)
		}
	})
}

func TestSysctlByNetlink(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add eth0 type veth peer name far")
		h, _ := open(t, Options{})
		for name, id := range inetConfIDs {
			value := "1"
			if old := sysctlValue(t, conf4("eth0", name)); old == "1" {
				value = "0"
			}
			if err := h.writeInetConf("eth0", id, value); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got := sysctlValue(t, conf4("eth0", name)); got != value {
				t.Errorf("%s is %s, want %s", name, got, value)
			}
		}
	})
}

func TestSysctlOnReadOnlyProc(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add eth0 type veth peer name far")
		setSysctl(t, conf4("eth0", "rp_filter"), "1")
		// A private mount namespace whose /proc/sys is read-only, as in a managed plugin.
		if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{
			syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
			syscall.Mount("/proc/sys", "/proc/sys", "", syscall.MS_BIND, ""),
			syscall.Mount("", "/proc/sys", "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		h, m := open(t, Options{})
		apply(t, h, plan.Links{}, []plan.Sysctl{{Path: conf4("eth0", "rp_filter"), From: []string{"1"}, Value: "2"}}, true, true)
		if got := sysctlValue(t, conf4("eth0", "rp_filter")); got != "2" {
			t.Errorf("rp_filter is %s", got)
		}
		changed, err := h.Apply(t.Context(), plan.Links{Bridges: []plan.BridgeLink{{Name: "eip_bridge", NetworkID: "abc"}}}, []plan.Sysctl{
			{Path: ipForward, From: []string{"0", "1"}, Value: "x"},
			{Path: conf4("eth0", "rp_filter"), From: []string{"1"}, Value: "2"},
			{Path: conf4("eth0", "arp_ignore"), From: []string{"0"}, Value: "1"},
		}, true)
		if err == nil || !changed || !strings.Contains(err.Error(), "writing sysctl net/ipv4/ip_forward=x") {
			t.Errorf("changed %v, error %v; want one for ip_forward, which netlink cannot set", changed, err)
		}
		if got := sysctlValue(t, conf4("eth0", "arp_ignore")); got != "1" {
			t.Errorf("arp_ignore is %s: the rest was not applied", got)
		}
		if _, ok := m.Original(sysctlKey(ipForward)); ok {
			t.Error("ip_forward is remembered though it was not set")
		}
		// The host's own beside it, as a plugin has it.
		root := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(root, "proc"), 0o755), syscall.Mount("proc", filepath.Join(root, "proc"), "proc", 0, "")); err != nil {
			t.Fatal(err)
		}
		old, other := sysctlValue(t, ipForward), "1"
		if old == other {
			other = "0"
		}
		h, _ = open(t, Options{Root: root})
		apply(t, h, plan.Links{}, []plan.Sysctl{{Path: ipForward, From: []string{old}, Value: other}}, true, true)
		if got := sysctlValue(t, ipForward); got != other {
			t.Errorf("ip_forward is %s, want %s", got, other)
		}
		o := &deletingOriginals{delete: func() { ip(t, "link del eth0") }}
		h, _ = open(t, Options{Originals: o})
		apply(t, h, plan.Links{}, []plan.Sysctl{{Path: conf4("eth0", "rp_filter"), From: []string{"2"}, Value: "1"}}, false, false)
	})
}

// deletingOriginals deletes a link between reading and writing its switch.
type deletingOriginals struct {
	MemoryOriginals
	delete func()
}

func (d *deletingOriginals) SetOriginal(key, value string) error {
	d.delete()
	return d.MemoryOriginals.SetOriginal(key, value)
}

func TestSysctlOfAVanishedDevice(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add eth0 type veth peer name far")
		setSysctl(t, conf4("eth0", "rp_filter"), "1")
		o := &deletingOriginals{delete: func() { ip(t, "link del eth0") }}
		h, _ := open(t, Options{Originals: o})
		want := []plan.Sysctl{{Path: conf4("eth0", "rp_filter"), From: []string{"1"}, Value: "2"}}
		apply(t, h, plan.Links{}, want, true, false) // it goes while it is switched
		apply(t, h, plan.Links{}, want, true, false) // it is gone
		if keys := o.OriginalKeys(); len(keys) > 0 {
			t.Errorf("originals: %v", keys)
		}
		for _, path := range []string{"net/ipv4/no_such_switch", "net/ipv4/conf/all/no_such_switch"} {
			if _, err := h.Apply(t.Context(), plan.Links{}, []plan.Sysctl{{Path: path, From: []string{"1"}, Value: "2"}}, true); err == nil {
				t.Errorf("%s: no error", path)
			}
		}
	})
}

// After the host was started again switches are as the host wants them, whatever eipnet set before.
func TestOriginalsOfAnotherBootAreForgotten(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add eth0 type veth peer name far")
		root := t.TempDir()
		write := func(path, value string) {
			name := filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(value+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write(bootID, "6f6e6521-0000-4000-8000-000000000001")
		write(ipForward, "0")
		m := &MemoryOriginals{}
		links, want := plan.Links{Grouped: []string{"eth0"}}, []plan.Sysctl{{Path: ipForward, From: []string{"0"}, Value: "1"}}
		h, _ := open(t, Options{Originals: m, ProcSys: root})
		apply(t, h, links, want, true, true)
		h, _ = open(t, Options{Originals: m, ProcSys: root})
		if !observe(t, h).ForwardingOurs || len(m.OriginalKeys()) != 2 {
			t.Errorf("after a restart of eipnet: originals %v", m.OriginalKeys())
		}

		write(bootID, "6f6e6521-0000-4000-8000-000000000002")
		write(ipForward, "1") // by the administrator or Docker
		ip(t, "link set eth0 group 7")
		h, _ = open(t, Options{Originals: m, ProcSys: root})
		if observe(t, h).ForwardingOurs || len(m.OriginalKeys()) > 0 {
			t.Errorf("after a reboot: originals %v", m.OriginalKeys())
		}
		apply(t, h, plan.Links{}, nil, true, false)
		if got, err := h.readSysctl(ipForward); got != "1" || err != nil {
			t.Errorf("ip_forward is %s, error %v", got, err)
		}
		apply(t, h, links, nil, true, true)
		apply(t, h, plan.Links{}, nil, true, true)
		if g := link(t, h, "eth0").Attrs().Group; g != 7 {
			t.Errorf("eth0 is in group %d, want 7", g)
		}

		if _, err := New(Options{Log: h.log, Originals: m, ProcSys: t.TempDir()}); err == nil {
			t.Error("no error without a boot id")
		}
	})
}

// A state file that cannot be written keeps nobody from starting: what an earlier
// boot left in it has no effect.
func TestOriginalsThatCannotBeForgotten(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add eth0 type veth peer name far0")
		o := &singleOriginals{refuse: true}
		_ = o.MemoryOriginals.SetOriginal("group:eth0", "another-boot 7 5")
		h, _ := open(t, Options{Originals: o})
		if err := h.RemoveAll(t.Context()); err == nil {
			t.Error("nothing says that it is still remembered")
		}
		if g := link(t, h, "eth0").Attrs().Group; g != 0 {
			t.Errorf("eth0 is in group %d", g)
		}
	})
}

func TestGroupIsSetAndPutBack(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add eth0 type veth peer name far0", "link add eth1 type veth peer name far1", "link set eth1 group 7")
		h, m := open(t, Options{})
		both := plan.Links{Grouped: []string{"eth0", "eth1", "eth9"}}
		apply(t, h, both, nil, true, true)
		apply(t, h, both, nil, true, false)
		for _, n := range both.Grouped[:2] {
			if g := link(t, h, n).Attrs().Group; g != model.NICGroup {
				t.Errorf("%s is in group %d", n, g)
			}
		}
		apply(t, h, plan.Links{}, nil, false, false)
		apply(t, h, plan.Links{Grouped: []string{"eth0"}}, nil, true, true)
		if g := link(t, h, "eth1").Attrs().Group; g != 7 {
			t.Errorf("eth1 is in group %d, want 7", g)
		}
		if diff := cmp.Diff([]string{"group:eth0"}, m.OriginalKeys()); diff != "" {
			t.Errorf("originals (-want +got):\n%s", diff)
		}
		ip(t, "link set eth0 group 9") // somebody's choice
		apply(t, h, plan.Links{}, nil, true, false)
		if g := link(t, h, "eth0").Attrs().Group; g != 9 || len(m.OriginalKeys()) > 0 {
			t.Errorf("eth0 is in group %d, originals %v", g, m.OriginalKeys())
		}
	})
}

// What a NIC was like is put back under whatever name it has by then.
func TestRenamedNICIsPutBack(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add eth0 type veth peer name far0", "link add eth1 type veth peer name far1", "link set eth1 group 7")
		strict := func(name string) plan.Sysctl {
			return plan.Sysctl{Path: conf4(name, "rp_filter"), From: []string{"0", "1"}, Value: "2"}
		}
		setSysctl(t, conf4("eth0", "rp_filter"), "0")
		setSysctl(t, conf4("eth1", "rp_filter"), "1")
		h, m := open(t, Options{})
		apply(t, h, plan.Links{Grouped: []string{"eth0", "eth1"}}, []plan.Sysctl{strict("eth0"), strict("eth1")}, true, true)
		ip(t, "link set eth0 name tmp", "link set eth1 name eth0", "link set tmp name eth1", "link set eth1 name lan1")
		apply(t, h, plan.Links{Grouped: []string{"lan1"}}, []plan.Sysctl{strict("lan1")}, true, true) // eth0 is the former eth1
		if g, v := link(t, h, "eth0").Attrs().Group, sysctlValue(t, conf4("eth0", "rp_filter")); g != 7 || v != "1" {
			t.Errorf("the former eth1 is in group %d, rp_filter %s", g, v)
		}
		apply(t, h, plan.Links{}, nil, true, true)
		if g, v := link(t, h, "lan1").Attrs().Group, sysctlValue(t, conf4("lan1", "rp_filter")); g != 0 || v != "0" {
			t.Errorf("the former eth0 is in group %d, rp_filter %s", g, v)
		}
		if left := m.OriginalKeys(); len(left) > 0 {
			t.Errorf("originals left: %v", left)
		}
	})
}

// singleOriginals refuses to change a remembered value alone, as one who dies
// after it would have.
type singleOriginals struct {
	MemoryOriginals
	refuse bool
}

func (s *singleOriginals) SetOriginal(key, value string) error {
	if s.refuse {
		return errors.New("died")
	}
	return s.MemoryOriginals.SetOriginal(key, value)
}

func (s *singleOriginals) DeleteOriginal(key string) error {
	if s.refuse {
		return errors.New("died")
	}
	return s.MemoryOriginals.DeleteOriginal(key)
}

func (s *singleOriginals) MoveOriginals(set map[string]string, forget []string) error {
	refuse := s.refuse
	s.refuse = false
	defer func() { s.refuse = refuse }()
	for _, key := range forget {
		_ = s.DeleteOriginal(key)
	}
	for key, value := range set {
		_ = s.SetOriginal(key, value)
	}
	return nil
}

// A daemon that dies while it follows a rename does not lose what the NIC was
// like: what is remembered goes to the new name at once, not key by key.
func TestRenameIsRememberedAtOnce(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add eth1 type veth peer name far1", "link set eth1 group 7")
		setSysctl(t, conf4("eth1", "rp_filter"), "1")
		o := &singleOriginals{}
		h, _ := open(t, Options{Originals: o})
		loose := plan.Sysctl{Path: conf4("eth1", "rp_filter"), From: []string{"0", "1"}, Value: "2"}
		apply(t, h, plan.Links{Grouped: []string{"eth1"}}, []plan.Sysctl{loose}, true, true)
		ip(t, "link set eth1 name lan1")
		o.refuse = true
		if _, err := h.Apply(t.Context(), plan.Links{Grouped: []string{"lan1"}}, nil, false); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"group:lan1", "sysctl:" + conf4("lan1", "rp_filter")}, o.OriginalKeys()); diff != "" {
			t.Errorf("originals (-want +got):\n%s", diff)
		}
	})
}

func TestBridgeIsMadeMendedAndRemoved(t *testing.T) {
	netnstest.Run(t, func() {
		setSysctl(t, "net/ipv4/conf/default/ignore_routes_with_linkdown", "1")
		h, _ := open(t, Options{})
		want := plan.Links{Null: true, Bridges: []plan.BridgeLink{
			{Name: "eip_bridge", NetworkID: "abc", MTU: 1450, Addrs: prefixes("172.19.0.1/16", "fd19::1/64")},
			{Name: "eip_two", NetworkID: "def", Addrs: prefixes("172.20.0.1/16")},
			{Name: "eip_iso", NetworkID: "ghi", NoIPv6: true},
		}}
		check := func() {
			t.Helper()
			l := link(t, h, "eip_bridge")
			at := l.Attrs()
			if l.Type() != "bridge" || at.Alias != "eipnet network abc" || at.MTU != 1450 || at.Flags&net.FlagUp == 0 || at.HardwareAddr[0]&3 != 2 {
				t.Errorf("bridge: %s, alias %q, MTU %d, flags %v, MAC %v", l.Type(), at.Alias, at.MTU, at.Flags, at.HardwareAddr)
			}
			addrs := ip(t, "addr show dev eip_bridge scope global")
			if !strings.Contains(addrs, "172.19.0.1/16") || !strings.Contains(addrs, "fd19::1/64") || strings.Contains(addrs, "tentative") || strings.Count(addrs, "inet") != 2 {
				t.Errorf("addresses:\n%s", addrs)
			}
			if addrs := ip(t, "addr show dev eip_iso"); !strings.Contains(addrs, "UP") || strings.Contains(addrs, "inet") {
				t.Errorf("the isolated bridge:\n%s", addrs)
			}
			for _, s := range []string{conf6("eip_bridge", "accept_ra"), conf4("eip_bridge", "ignore_routes_with_linkdown"), conf4(model.NullDevice, "ignore_routes_with_linkdown")} {
				if got := sysctlValue(t, s); got != "0" {
					t.Errorf("%s is %s", s, got)
				}
			}
		}
		apply(t, h, want, nil, true, true)
		apply(t, h, want, nil, true, false)
		check()
		mac := link(t, h, "eip_bridge").Attrs().HardwareAddr.String()

		setSysctl(t, conf6("eip_iso", "disable_ipv6"), "0")
		ip(t, "link set eip_bridge down", "link set eip_bridge mtu 1400", "addr del 172.19.0.1/16 dev eip_bridge",
			"addr add 10.66.0.1/24 dev eip_bridge", "link set "+model.NullDevice+" down", "link set "+model.NullDevice+" arp on",
			"addr add 10.67.0.1/24 dev "+model.NullDevice, "link add stray type veth peer name stray1", "link set stray master "+model.NullDevice)
		apply(t, h, want, nil, true, true)
		apply(t, h, want, nil, true, false)
		check()
		if got := link(t, h, "eip_bridge").Attrs().HardwareAddr.String(); got != mac {
			t.Errorf("MAC changed from %s to %s", mac, got)
		}
		if null := ip(t, "addr show dev "+model.NullDevice); !strings.Contains(null, "NOARP") || !strings.Contains(null, "UP") || strings.Contains(null, "inet") {
			t.Errorf("null device:\n%s", null)
		}
		if m := link(t, h, "stray").Attrs().MasterIndex; m != 0 {
			t.Errorf("the null device has a port")
		}

		apply(t, h, plan.Links{}, nil, false, false)
		apply(t, h, plan.Links{Bridges: want.Bridges[:1]}, nil, true, true)
		if !absent(h, "eip_two") || !absent(h, model.NullDevice) || absent(h, "eip_bridge") {
			t.Error("what is not wanted is still there, or what is wanted is not")
		}
		ip(t, "link del eip_bridge")
		apply(t, h, want, nil, true, true)
		check()
		if got := link(t, h, "eip_bridge").Attrs().HardwareAddr.String(); got != mac {
			t.Errorf("the MAC of the bridge that was made again is %s, was %s", got, mac)
		}
		apply(t, h, plan.Links{}, nil, true, true)
		if !absent(h, "eip_bridge") {
			t.Error("eip_bridge is still there")
		}
	})
}

func TestBridgeNameInUse(t *testing.T) {
	netnstest.Run(t, func() {
		ip(t, "link add mine type bridge", "addr add 10.1.0.1/24 dev mine", "link add eipnull0 type veth peer name far")
		h, _ := open(t, Options{})
		changed, err := h.Apply(t.Context(), plan.Links{Null: true, Bridges: []plan.BridgeLink{
			{Name: "mine", NetworkID: "abc", Addrs: prefixes("172.19.0.1/16")},
			{Name: "eip_bridge", NetworkID: "def"},
		}}, nil, true)
		if err == nil || !changed || !strings.Contains(err.Error(), "making bridge mine: the name is in use by another link") ||
			!strings.Contains(err.Error(), "making eipnull0: the name is in use") {
			t.Errorf("Apply: changed %v, error %v", changed, err)
		}
		var joined interface{ Unwrap() []error }
		var subjects []string
		if errors.As(err, &joined) {
			for _, e := range joined.Unwrap() {
				var s interface{ Subject() string }
				if errors.As(e, &s) {
					subjects = append(subjects, s.Subject())
				}
			}
		}
		if diff := cmp.Diff([]string{model.NullDevice, "mine"}, subjects); diff != "" {
			t.Errorf("subjects of the errors (-want +got):\n%s", diff)
		}
		if got := ip(t, "addr show dev mine"); strings.Contains(got, "172.19.0.1") || strings.Contains(got, "alias") {
			t.Errorf("the other link was changed:\n%s", got)
		}
		link(t, h, "eip_bridge")
		apply(t, h, plan.Links{}, nil, true, true)
		link(t, h, "mine")
		link(t, h, "eipnull0")
	})
}

// A packet that is routed to the null device is forwarded nowhere, in IPv4 and IPv6.
func TestNullDeviceLeadsNowhere(t *testing.T) {
	host, far := twoNICs(t)
	far.Do(func() { ip(t, "addr add 172.31.0.1/20 dev sw", "addr add 2001:db8::1/64 dev sw nodad") })
	host.Do(func() {
		h, _ := open(t, Options{})
		apply(t, h, plan.Links{Null: true}, nil, true, true)
		setSysctl(t, ipForward, "1")
		setSysctl(t, conf6("all", "forwarding"), "1")
		setSysctl(t, conf4("all", "rp_filter"), "0")
		ip(t, "addr add 2001:db8::8/64 dev eth0 nodad", "route add default via 172.31.0.1 dev eth0", "-6 route add default via 2001:db8::1 dev eth0",
			"link add eip_bridge type bridge", "link set eip_bridge up", "addr add 172.19.0.1/16 dev eip_bridge", "addr add fd19::1/64 dev eip_bridge nodad")
	})
	box := netnstest.New(t)
	host.Do(func() {
		ip(t, "link add c type veth peer name cp", "link set c master eip_bridge up", "link set cp netns "+netnsPath(box))
	})
	box.Do(func() {
		ip(t, "link set cp up", "addr add 172.19.0.100/16 dev cp", "addr add fd19::100/64 dev cp nodad", "route add default via 172.19.0.1", "-6 route add default via fd19::1")
	})
	silent := func() (families int) {
		far.Do(func() { families = strings.Count(execOutput(t, "nft list table inet seen"), "packets 0 ") })
		return families
	}
	count := func() {
		execOutput(t, "nft add table inet seen")
		execOutput(t, "nft flush table inet seen")
		execOutput(t, "nft add chain inet seen in { type filter hook prerouting priority -300 ; }")
		execOutput(t, "nft add rule inet seen in ip saddr 172.19.0.100 udp dport 9 counter")
		execOutput(t, "nft add rule inet seen in ip6 saddr fd19::100 udp dport 9 counter")
	}
	far.Do(count)
	send := func() {
		box.Do(func() {
			for range 5 {
				for _, to := range []string{"203.0.113.5:9", "[2001:db8:9::5]:9"} {
					c, err := net.Dial("udp", to)
					if err != nil {
						t.Fatal(err)
					}
					_, _ = c.Write([]byte("planted"))
					c.Close()
				}
			}
		})
	}
	eventually(t, "the planted packets are seen without the rule", func() bool { send(); return silent() == 0 })
	host.Do(func() {
		ip(t, "rule add pref 5190 iif eip_bridge lookup 8199", "-6 rule add pref 5190 iif eip_bridge lookup 8199",
			"route add default dev eipnull0 table 8199", "-6 route add default dev eipnull0 table 8199")
	})
	eventually(t, "what was planted before the rule to have arrived", func() bool {
		far.Do(count)
		delay.For(t.Context(), 200*time.Millisecond)
		return silent() == 2
	})
	before := txOf(t, host, model.NullDevice)
	eventually(t, "the packets are at the null device", func() bool { send(); return txOf(t, host, model.NullDevice) >= before+20 })
	if silent() != 2 {
		far.Do(func() { t.Errorf("a packet got through:\n%s", execOutput(t, "nft list table inet seen")) })
	}
}

func txOf(t testing.TB, n netnstest.NS, name string) (packets uint64) {
	t.Helper()
	n.Do(func() {
		h, _ := open(t, Options{})
		s := link(t, h, name).Attrs().Statistics
		packets = s.TxPackets + s.TxDropped
	})
	return packets
}

func TestReadSysctlRefusesOtherFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h := &Host{o: Options{ProcSys: filepath.Join(dir, "sys")}}
	if _, err := h.readSysctl("../secret"); err == nil {
		t.Error("a path outside was read")
	}
	if err := h.writeSysctl("../secret", "1"); err == nil {
		t.Error("a path outside was written")
	}
}
