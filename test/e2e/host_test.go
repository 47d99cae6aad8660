package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/test/lab"
)

// sshPort is where the host's own service listens; its line echo is one above.
const sshPort = 2222

// TestHostIsNotDisturbed: whoever is logged in stays so, and can log in again,
// whatever eipnet is doing; and nothing that is not ours changes.
func TestHostIsNotDisturbed(t *testing.T) {
	for _, shape := range []lab.Shape{lab.OneSubnet, lab.ThreeSubnets} {
		t.Run(shape.String(), func(t *testing.T) { hostIsNotDisturbed(t, lab.Config{Shape: shape}, true) })
	}
	// More addresses on eth1 than anybody wants to write rules for, and nobody's
	// policy routing but the VPN's.
	many := lab.Config{Shape: lab.OneSubnet, ExtraAddrs: make(map[string][]netip.Prefix)}
	for i := range 18 {
		many.ExtraAddrs["eth1"] = append(many.ExtraAddrs["eth1"], netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, 1, byte(i + 1)}), 32))
	}
	t.Run("many addresses", func(t *testing.T) { hostIsNotDisturbed(t, many, false) })
}

func hostIsNotDisturbed(t *testing.T, cfg lab.Config, policyRouting bool) {
	r := prepare(t, cfg)
	ctx := t.Context()
	if policyRouting { // the administrator's own, so that eth1 answers without eipnet
		r.on("ip", "rule", "add", "pref", "1000", "from", r.Addr("eth1").String(), "lookup", "200")
		r.on("ip", "route", "add", "default", "via", r.NIC("eth1").Gateway.String(), "dev", "eth1", "table", "200")
	}
	vpn, err := r.AddVPNLeg(ctx)
	if err != nil {
		t.Fatal(err)
	}
	static, err := r.AddStaticClient(ctx)
	if err != nil {
		t.Fatal(err)
	}
	app, err := r.BuildApp(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Host.Install(app, "sshd-like"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Host.Start("sshd-like", "serve", "--addr", fmt.Sprintf(":%d", sshPort)); err != nil {
		t.Fatal(err)
	}
	forwardThrough(r)
	// With every network engines up to 27 put the jump to DOCKER-USER first in FORWARD again.
	r.docker("network", "create", "first")
	r.docker("network", "rm", "first")

	eth0 := r.Addr("eth0")
	type way struct {
		name string
		from dialer
		to   netip.Addr
	}
	ways := []way{
		{"by eth0", r.Site, r.EIP("eth0")},
		{"by the VPN to the tunnel's address", vpn, netip.MustParseAddr("10.99.0.1")},
		{"by the VPN to eth0's address", vpn, eth0},
		{"by a static route", static, eth0},
	}
	if policyRouting {
		ways = append(ways, way{"by eth1", r.Site, r.EIP("eth1")})
	} else {
		ways = append(ways, way{"by the VPN to eth1's address", vpn, r.Addr("eth1")})
	}
	var sessions []*session
	r.eventually("the host's service", func() error {
		_, err := r.SiteGet(ctx, fmt.Sprintf("http://%v:%d/hello", r.EIP("eth0"), sshPort))
		return err
	})
	for _, w := range ways {
		sessions = append(sessions, openSession(t, w.name, w.from, netip.AddrPortFrom(w.to, sshPort+1).String()))
	}
	routed := openSession(t, "routed by the host", vpn, netip.AddrPortFrom(lab.SiteAddr, 7).String())
	sessions = append(sessions, routed)
	before := foreign(t, r)

	stage := func(name string) {
		t.Helper()
		for _, s := range sessions {
			s.goesOn(t)
		}
		for _, w := range ways {
			dial, cancel := context.WithTimeout(ctx, patience)
			c, err := w.from.Dial(dial, "tcp", netip.AddrPortFrom(w.to, sshPort+1).String())
			cancel()
			if err != nil {
				t.Errorf("%s: a new session %s: %v", name, w.name, err)
				continue
			}
			c.Close()
		}
		if diff := cmp.Diff(before, foreign(t, r)); diff != "" {
			t.Errorf("%s: what is not ours changed (-before +now):\n%s", name, diff)
		}
		if marked := r.on("nft", "list", "counter", "inet", "watch", "marked"); !strings.Contains(marked, "packets 0 ") {
			t.Errorf("%s: traffic that the host merely routes was marked: %s", name, marked)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	stage("before eipnet")
	r.serve()
	stage("eipnet started")
	r.createNetwork("-o", "eip.nic=eth0")
	stage("network created, primary managed")
	r.docker("run", "-d", "--name", "pinned0", "--network", network, "--label", "eip.nic=eth0", "-p", "8090:8080", lab.Image)
	r.docker("run", "-d", "--name", "pinned1", "--network", network, "--label", "eip.nic=eth1", "-p", "8090:8080", lab.Image)
	r.docker("run", "-d", "--name", "pinned2", "--network", network, "--label", "eip.nic=eth2", "-p", "0.0.0.0:8094:8080", lab.Image)
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	stage("containers pinned to every NIC")
	if out := r.on("nft", "list", "counter", "inet", "watch", "routed"); strings.Contains(out, "packets 0 ") {
		t.Error("no routed traffic was watched: the check of its marks shows nothing")
	}
	r.kill()
	stage("daemon killed")
	r.serve()
	stage("daemon back")
	r.docker("rm", "-f", "pinned0", "pinned1", "pinned2")
	stage("containers removed")
	r.docker("network", "rm", network)
	stage("network removed")
	if err := r.daemon.Stop(ctx, 15); err != nil {
		t.Error(err)
	}
	stage("eipnet stopped")
	r.clean()
}

// forwardThrough has the host route between the VPN and the world, as an
// administrator would, and counts what of it bears a mark of ours.
func forwardThrough(r *rig) {
	r.on("iptables", "-I", "FORWARD", "-i", lab.VPNLink, "-j", "ACCEPT")
	r.on("iptables", "-I", "FORWARD", "-o", lab.VPNLink, "-j", "ACCEPT")
	r.on("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "10.98.0.0/24", "-o", "eth0", "-j", "MASQUERADE")
	if _, err := r.Host.RunInput(r.t.Context(), strings.NewReader(`
		table inet watch {
			counter routed { }
			counter marked { }
			chain post {
				type filter hook postrouting priority 300
				iifname "tun0" counter name routed
				iifname "tun0" meta mark & 0xff000000 != 0 counter name marked
				iifname "tun0" ct mark & 0xff000000 != 0 counter name marked
			}
		}`), "nft", "-f", "-"); err != nil {
		r.t.Fatal(err)
	}
}

// foreign describes what on the host is not ours: rules outside our band, main
// and the administrator's tables, the FORWARD policy, forwarding.
func foreign(t *testing.T, r *rig) string {
	t.Helper()
	var out []string
	for line := range strings.SplitSeq(r.on("ip", "rule"), "\n") {
		if !strings.Contains(line, "proto 201") {
			out = append(out, line)
		}
	}
	for _, table := range []string{"main", "200", "52"} {
		routes, _ := r.Host.Run(t.Context(), "ip", "route", "show", "table", table) // there may be no such table
		for line := range strings.SplitSeq(routes, "\n") {
			if !strings.Contains(line, bridge) {
				out = append(out, table+": "+line)
			}
		}
	}
	for line := range strings.SplitSeq(r.on("iptables", "-S", "FORWARD"), "\n") {
		if !strings.Contains(line, "EIPNET-FORWARD") {
			out = append(out, line)
		}
	}
	value, err := r.Host.Run(context.Background(), "sysctl", "-n", "net.ipv4.ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(append(out, "ip_forward "+value), "\n")
}
