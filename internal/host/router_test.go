package host

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/delay"
	"github.com/eipnet/eipnet/internal/netnstest"
	"github.com/eipnet/eipnet/internal/plan"
)

// advert is a router's advertisement to all nodes, as an Ethernet frame: fe80::1
// is a default router for half an hour.
func advert(t testing.TB) []byte {
	t.Helper()
	src, all := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::1")
	icmp := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}
	pseudo := slices.Concat(src.AsSlice(), all.AsSlice(), []byte{0, 0, 0, byte(len(icmp)), 0, 0, 0, unix.IPPROTO_ICMPV6}, icmp)
	var sum uint32
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum+sum>>16))
	ether := []byte{0x33, 0x33, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 1, 0x86, 0xdd}
	ip6 := []byte{0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255}
	return slices.Concat(ether, ip6, src.AsSlice(), all.AsSlice(), icmp)
}

// advertise has a router behind a link's peer speak until done.
func advertise(t testing.TB, peer string, done func() bool) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	h, _ := open(t, Options{})
	to := &unix.SockaddrLinklayer{Ifindex: link(t, h, peer).Attrs().Index}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for !done() {
		if err := unix.Sendto(fd, advert(t), 0, to); err != nil {
			t.Fatal(err)
		}
		if !delay.For(ctx, 10*time.Millisecond) {
			t.Fatal("the router's advertisements are not taken")
		}
	}
}

// The trap: a host that forwards takes no advice of routers with accept_ra 1,
// and the kernel forgets the default routes that it has from them.
func TestForwardingKeepsRoutersAdvice(t *testing.T) {
	netnstest.Run(t, func() {
		accept := conf6("eth0", "accept_ra")
		setSysctl(t, plan.Forwarding6, "0")
		ip(t, "link add eth0 type veth peer name far")
		setSysctl(t, accept, "1")
		ip(t, "addr add 172.31.0.8/20 dev eth0", "link set eth0 up", "link set far up")
		advised := func() bool {
			return strings.Contains(execOutput(t, "ip -6 route"), "default via fe80::1 dev eth0 proto ra")
		}
		advertise(t, "far", advised)

		h, m := open(t, Options{})
		if got := observe(t, h); !slices.Contains(got.Advertised, "eth0") || slices.Contains(got.Advertised, "lo") || got.Forwarding6Ours {
			t.Errorf("advertised: %v; forwarding ours: %v", got.Advertised, got.Forwarding6Ours)
		}
		want := []plan.Sysctl{{Path: plan.Forwarding6, From: []string{"0"}, Value: "1"}, {Path: accept, From: []string{"1"}, Value: "2"}}
		apply(t, h, plan.Links{}, want, true, true)
		apply(t, h, plan.Links{}, want, true, false)
		if a, f := sysctlValue(t, accept), sysctlValue(t, plan.Forwarding6); a != "2" || f != "1" || !advised() || !observe(t, h).Forwarding6Ours {
			t.Errorf("accept_ra %s, forwarding %s, routes:\n%s", a, f, execOutput(t, "ip -6 route"))
		}
		ip(t, "-6 route flush proto ra")
		advertise(t, "far", advised) // still taken
		apply(t, h, plan.Links{}, nil, true, true)
		if a, f := sysctlValue(t, accept), sysctlValue(t, plan.Forwarding6); a != "1" || f != "0" || !advised() {
			t.Errorf("put back: accept_ra %s, forwarding %s, routes:\n%s", a, f, execOutput(t, "ip -6 route"))
		}
		if keys := m.OriginalKeys(); len(keys) > 0 {
			t.Errorf("originals: %v", keys)
		}
	})
}

// A NIC of whatever kind may get its first address by router advertisements only
// when forwarding is on; what carries others' traffic has to have one. Here no
// kernel has to have all kinds.
func TestAdvertisedWithoutAnAddress(t *testing.T) {
	for kind, want := range map[string]bool{"device": true, "vlan": true, "bond": true, "team": true, "bridge": false, "wireguard": false, "veth": false} {
		l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "x0", Index: 7}, LinkType: kind}
		if got := advertised(&tables{}, l); got != want {
			t.Errorf("%s: %v", kind, got)
		}
		l.MasterIndex = 3
		if advertised(&tables{}, l) {
			t.Errorf("%s that is another's port is listed", kind)
		}
	}
}

// brokenOriginals cannot remember one key, or not forget it.
type brokenOriginals struct {
	MemoryOriginals
	key string
}

var errBroken = errors.New("disk full")

func (b *brokenOriginals) SetOriginal(key, value string) error {
	if key == b.key {
		return errBroken
	}
	return b.MemoryOriginals.SetOriginal(key, value)
}

// Whatever goes wrong, forwarding is on only while advice counts all the same.
func TestForwardingIsLastToComeAndFirstToGo(t *testing.T) {
	netnstest.Run(t, func() {
		root := t.TempDir()
		write := func(path, value string) {
			t.Helper()
			name := filepath.Join(root, path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(value), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		write(bootID, "6f6e6521-0000-4000-8000-000000000001")
		write(plan.Forwarding6, "0")
		write(conf6("a0", "accept_ra"), "1") // before "all", should anybody sort
		write(conf6("eth0", "accept_ra"), "1")
		want := []plan.Sysctl{
			{Path: conf6("a0", "accept_ra"), From: []string{"1"}, Value: "2"},
			{Path: plan.Forwarding6, From: []string{"0"}, Value: "1"},
			{Path: conf6("eth0", "accept_ra"), From: []string{"1"}, Value: "2"},
		}
		o := &brokenOriginals{key: sysctlKey(conf6("eth0", "accept_ra"))}
		h, _ := open(t, Options{Originals: o, ProcSys: root})
		values := func() string {
			var out []string
			for _, s := range want {
				v, err := h.readSysctl(s.Path)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, v)
			}
			return strings.Join(out, " ")
		}
		if _, err := h.Apply(t.Context(), plan.Links{}, want, true); !errors.Is(err, errBroken) {
			t.Errorf("Apply: %v", err)
		}
		if diff := cmp.Diff("2 0 1", values()); diff != "" {
			t.Errorf("where one could not be set (-want +got):\n%s", diff)
		}
		o.key = ""
		apply(t, h, plan.Links{}, want, true, true)
		if diff := cmp.Diff("2 1 2", values()); diff != "" {
			t.Errorf("set (-want +got):\n%s", diff)
		}
		forwarding := filepath.Join(root, plan.Forwarding6)
		if err := errors.Join(os.Remove(forwarding), os.Mkdir(forwarding, 0o755)); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Apply(t.Context(), plan.Links{}, nil, true); err == nil {
			t.Error("Apply put back what it could not read")
		}
		if err := os.Remove(forwarding); err != nil {
			t.Fatal(err)
		}
		write(plan.Forwarding6, "1")
		if diff := cmp.Diff("2 1 2", values()); diff != "" {
			t.Errorf("where forwarding could not be put back (-want +got):\n%s", diff)
		}
		apply(t, h, plan.Links{}, nil, true, true)
		if diff := cmp.Diff("1 0 1", values()); diff != "" {
			t.Errorf("put back (-want +got):\n%s", diff)
		}
	})
}
