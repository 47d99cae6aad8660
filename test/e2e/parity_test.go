package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/reconcile"
	"github.com/eipnet/eipnet/test/lab"
)

// TestBridgeParity: the same containers and ports on Docker's bridge and on
// eipnet, asked from everywhere over IPv4 and IPv6. Who reaches what, and as
// whom it is seen, is the same, but for what differences says; the page
// docs/bridge-parity.md shows all of it. With -update it writes the page.
func TestBridgeParity(t *testing.T) {
	if engine() != pageEngine {
		t.Skipf("the page is about engine %s; this run is with %s", pageEngine, engine())
	}
	r := prepare(t, lab.Config{Shape: lab.OneSubnet})
	if _, err := r.ServeHost(t.Context(), r.Addr("eth0"), r.Addr6("eth0")); err != nil {
		t.Fatal(err)
	}
	bridge := &side{rig: r, driver: "bridge", net4: "172.40.%s", net6: "fd00:40:%s", port: 8100}
	eipnet := &side{rig: r, driver: "eipnet", net4: "172.41.%s", net6: "fd00:41:%s", port: 8200}
	bridge.foreign, eipnet.foreign = eipnet, bridge
	bridge.start(t)
	alone := bridge.ask(t) // before eipnet runs; nobody is on the other side
	r.resetSniffers()      // by itself the host asks for eth1's gateway with eth0
	r.serve()
	eipnet.start(t)
	bridge.pin(t)
	eipnet.pin(t)

	got, ours := bridge.ask(t), eipnet.ask(t)
	for row, want := range alone {
		if row.from != fromForeign && row.from != fromPinned && row.to != toPinned && row.to != toPinned0 && row.to != toFourPin && got[row] != want {
			t.Errorf("with eipnet on the host, Docker's own network changed: from %s to %s: %v, before %v", row.from, row.to, got[row], want)
		}
	}
	for row, want := range got {
		reason := differences[row]
		switch {
		case ours[row] != want && reason == "":
			t.Errorf("from %s to %s: bridge %v, eipnet %v; no reason is given", row.from, row.to, want, ours[row])
		case ours[row] == want && reason != "":
			t.Errorf("from %s to %s: both %v, and yet a reason is given", row.from, row.to, want)
		}
	}
	var rows []row
	for _, q := range eipnet.questions() {
		rows = append(rows, q.row)
	}
	checkParityPage(t, rows, got, ours)

	// All of it where forwarding is refused by default, and with the user's own rules going first.
	for _, tool := range []string{"iptables", "ip6tables"} {
		if rules := r.on(tool, "-S", "FORWARD"); !strings.Contains(rules, "-P FORWARD DROP") {
			t.Errorf("Docker's policy is not DROP: %s", rules)
		}
		r.on(tool, "-I", "DOCKER-USER", "-i", "eth+", "-p", "tcp", "--dport", "8081", "-j", "DROP")
		r.on(tool, "-I", "DOCKER-USER", "-o", "eth+", "-p", "udp", "--dport", "7", "-j", "DROP")
	}
	for _, s := range []*side{bridge, eipnet} {
		now := s.ask(t)
		for _, refused := range []row{{fromSite, toAll}, {fromSame, toSiteUDP}, {fromPinned, toSiteUDP}} {
			if now[refused] != (seen{"no", "no"}) {
				t.Errorf("%s: DOCKER-USER refuses what goes from %s to %s, and yet: %v", s.driver, refused.from, refused.to, now[refused])
			}
		}
		if kept := (row{fromPinned, toSiteTCP}); now[kept] != (seen{"as eth1", "as eth1"}) {
			t.Errorf("%s: from %s to %s: %v", s.driver, kept.from, kept.to, now[kept])
		}
	}
	for _, flush := range []string{"iptables -F; ip6tables -F", "nft flush ruleset"} {
		r.on("sh", "-c", flush)
		eipnet.asBefore(t, flush, ours)
	}
	foreign, err := r.Foreign(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range foreign {
		// What Docker's unpinned container answers by the wrong NIC is in the table. And with all rules flushed
		// the host routes for everybody: the main table knows nothing of an isolated network.
		docker := int(f.SPort) >= bridge.port && int(f.SPort) < bridge.port+7
		if isolated := f.Dst == eipnet.addr(model.FamilyOf(f.Dst), "4", 10); !docker && !isolated {
			t.Errorf("foreign packet: %v", f)
		}
	}
}

// side is one driver's half: networks 1 (web, pin, peer), 2 (other), 3 (inner,
// inpeer, --internal) and 4 (the same, isolated), each with both families, and 5 with IPv4 alone.
type side struct {
	*rig
	driver     string
	net4, net6 string
	port       int
	foreign    *side
	started    bool
	pids       map[string]string
}

func (s *side) network(n string) string { return s.driver + "-" + n }

// addr is the address of a container on its network; host 1 is the gateway.
func (s *side) addr(f model.Family, net string, host int) netip.Addr {
	if f == model.IPv6 {
		return netip.MustParseAddr(fmt.Sprintf(s.net6, net) + fmt.Sprintf("::%d", host))
	}
	return netip.MustParseAddr(fmt.Sprintf(s.net4, net) + fmt.Sprintf(".%d", host))
}

// Containers by name: their network (also the third number of its subnet) and their address there.
var parityContainers = []struct {
	name, net string
	host      int
}{{"web", "1", 10}, {"peer", "1", 11}, {"pin", "1", 12}, {"other", "2", 10}, {"inner", "3", 10}, {"inpeer", "3", 11}, {"iso", "4", 10}, {"isopeer", "4", 11}, {"four", onlyIPv4, 10}, {"fourpin", onlyIPv4, 12}}

// parityNetworks are the networks.
var parityNetworks = []string{"1", "2", "3", "4", onlyIPv4}

const onlyIPv4 = "5"

func (s *side) start(t *testing.T) {
	t.Helper()
	for _, n := range parityNetworks {
		args := []string{"network", "create", "-d", s.driver, "--subnet", fmt.Sprintf(s.net4, n) + ".0/24"}
		if n != onlyIPv4 {
			args = append(args, "--ipv6", "--subnet", fmt.Sprintf(s.net6, n)+"::/64")
		}
		if n == "3" || n == "4" {
			args = append(args, "--internal")
		}
		if n == "4" {
			args = append(args, "-o", "com.docker.network.bridge.gateway_mode_ipv4=isolated", "-o", "com.docker.network.bridge.gateway_mode_ipv6=isolated")
		}
		s.docker(append(args, s.network(n))...)
		for _, f := range []string{fmt.Sprintf(s.net4, n) + ".0/24 via " + s.Addr("eth1").String(), fmt.Sprintf(s.net6, n) + "::/64 via " + s.Addr6("eth1").String()} {
			if err := s.InFabric(func() error { return ipCommand(t, "route", "add", f) }); err != nil {
				t.Fatal(err) // the site sends to containers' own addresses by eth1
			}
		}
	}
	var wg sync.WaitGroup
	for _, c := range parityContainers {
		if strings.HasSuffix(c.name, "pin") {
			continue
		}
		wg.Go(func() { s.container(t, c.name, c.net, c.host, s.published(c.name)...) })
	}
	wg.Wait()
	s.started = true
	s.lookUp()
}

// published are the ports of web: on all addresses, on eth1's, on 0.0.0.0, on ::1; and of four.
func (s *side) published(name string) []string {
	switch name {
	case "web":
		return []string{
			"-p", fmt.Sprintf("%d:8081", s.port), "-p", fmt.Sprintf("%d:8080/udp", s.port),
			"-p", fmt.Sprintf("%v:%d:8081", s.Addr("eth1"), s.port+1), "-p", fmt.Sprintf("[%v]:%d:8081", s.Addr6("eth1"), s.port+1),
			"-p", fmt.Sprintf("0.0.0.0:%d:8081", s.port+2), "-p", fmt.Sprintf("[::1]:%d:8081", s.port+4),
		}
	case "four":
		return []string{"-p", fmt.Sprintf("%d:8081", s.port+5), "-p", fmt.Sprintf("%d:8080/udp", s.port+5)}
	}
	return nil
}

// pin starts the containers that are pinned to eth1.
func (s *side) pin(t *testing.T) {
	t.Helper()
	s.container(t, "pin", "1", 12, "--label", "eip.nic=eth1", "-p", fmt.Sprintf("%d:8081", s.port+3))
	s.container(t, "fourpin", onlyIPv4, 12, "--label", "eip.nic=eth1", "-p", fmt.Sprintf("%d:8081", s.port+6))
	s.lookUp()
}

func (s *side) container(t *testing.T, name, net string, host int, args ...string) {
	t.Helper()
	all := []string{"run", "-d", "--name", s.driver + "-" + name, "--network", s.network(net), "--ip", s.addr(model.IPv4, net, host).String()}
	if net != onlyIPv4 {
		all = append(all, "--ip6", s.addr(model.IPv6, net, host).String())
	}
	if _, err := s.Docker(t.Context(), append(append(all, args...), lab.Image)...); err != nil {
		t.Error(err)
	}
}

// lookUp finds the containers' processes, and waits until they listen.
func (s *side) lookUp() {
	s.t.Helper()
	s.pids = make(map[string]string)
	names := strings.Fields(s.docker("ps", "--filter", "name=^"+s.driver+"-", "--format", "{{.Names}}"))
	for line := range strings.Lines(s.docker(append([]string{"inspect", "-f", "{{.Name}} {{.State.Pid}}"}, names...)...)) {
		name, pid, _ := strings.Cut(strings.TrimSpace(line), " ")
		s.pids[strings.TrimPrefix(name, "/"+s.driver+"-")] = pid
	}
	for name, pid := range s.pids {
		s.eventually(name+" to listen", func() error {
			c, err := s.dialIn(s.t.Context(), pid, "tcp", "127.0.0.1:8081")
			if err == nil {
				_, err = greeting(c, "tcp")
			}
			return err
		})
	}
}

// Where is asked from.
const (
	fromSite    = "the Internet"
	fromHost    = "the host"
	fromSame    = "a container of the same network"
	fromSelf    = "the container itself"
	fromOther   = "a container of another network"
	fromForeign = "a container of another network, of the other driver"
	fromPinned  = "a container pinned to eth1"
	fromInner   = "a container of an `--internal` network"
	fromInPeer  = "a container of the same `--internal` network"
	fromIsoPeer = "a container of the same isolated network"
	fromInOther = "a container of an `--internal` network, of the other driver"
)

// dial connects from a place.
func (s *side) dial(ctx context.Context, from, network, to string) (net.Conn, error) {
	on, name := s, map[string]string{
		fromSame: "peer", fromSelf: "web", fromOther: "other", fromForeign: "other", fromPinned: "pin", fromInner: "inner",
		fromInPeer: "inpeer", fromInOther: "inner", fromIsoPeer: "isopeer",
	}[from]
	switch from {
	case fromSite:
		return s.SiteDial(ctx, network, to)
	case fromHost:
		return s.HostDial(ctx, netip.Addr{}, network, to)
	case fromForeign, fromInOther:
		on = s.foreign
	}
	pid := on.pids[name]
	if pid == "" {
		return nil, errors.New("it does not run yet")
	}
	return s.dialIn(ctx, pid, network, to)
}

// dialIn connects from a process's network.
func (s *side) dialIn(ctx context.Context, pid, network, to string) (conn net.Conn, err error) {
	err = inNetNS(s.Host.Path("/proc/"+pid+"/ns/net"), func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, to)
		return err
	})
	return conn, err
}

// row is a line of the table, seen what came of it in each family.
type row struct{ from, to string }

type seen struct{ v4, v6 string }

// probeTime is how long one try may take, and how often one is tried: what is
// dropped is asked about in vain, and a busy machine is slow.
const (
	probeTime  = 1500 * time.Millisecond
	probeTries = 3
)

// ask asks everything at once and returns as whom the asker was seen.
func (s *side) ask(t *testing.T) map[row]seen {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := make(map[row]seen)
	for _, q := range s.questions() {
		for _, f := range model.Families {
			to, ok := q.to[f]
			if !ok {
				continue
			}
			wg.Go(func() {
				got := s.probe(t.Context(), q.row.from, q.network, to)
				mu.Lock()
				defer mu.Unlock()
				both := out[q.row]
				if f == model.IPv4 {
					both.v4 = got
				} else {
					both.v6 = got
				}
				out[q.row] = both
			})
		}
	}
	wg.Wait()
	return out
}

// asBefore waits until everything is as it was. A sweep finds what no event tells.
func (s *side) asBefore(t *testing.T, what string, before map[row]seen) {
	t.Helper()
	var different []string
	for deadline := time.Now().Add(reconcile.MaxInterval + patience); ; {
		different = nil
		for row, now := range s.ask(t) {
			if now != before[row] && row.from != fromForeign { // Docker's side is not mended
				different = append(different, fmt.Sprintf("from %s to %s: %v, before %v", row.from, row.to, now, before[row]))
			}
		}
		if len(different) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("after %s:\n%s", what, strings.Join(different, "\n"))
			return
		}
	}
}

// probe says as whom it was seen, or that it was not.
func (s *side) probe(ctx context.Context, from, network string, to netip.AddrPort) string {
	var text string
	err := errors.New("never tried")
	for try := 0; try < probeTries && err != nil; try++ {
		text, err = s.greet(ctx, from, network, to.String())
	}
	if err != nil {
		return "no"
	}
	source, _, _ := strings.Cut(text, " ")
	ap, err := netip.ParseAddrPort(strings.TrimSpace(source))
	if err != nil {
		return "unreadable: " + text
	}
	return s.title(from, ap.Addr().Unmap())
}

// greet returns the first line of the lab's line and datagram services: the address that they see.
func (s *side) greet(ctx context.Context, from, network, to string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	c, err := s.dial(ctx, from, network, to)
	if err != nil {
		return "", err
	}
	return greeting(c, network)
}

func greeting(c net.Conn, network string) (string, error) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(probeTime)); err != nil {
		return "", err
	}
	if network == "udp" {
		if _, err := c.Write([]byte("hello")); err != nil {
			return "", err
		}
	}
	buf := make([]byte, 200)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// title names an address.
func (s *side) title(from string, a netip.Addr) string {
	for _, n := range s.NICs() {
		if a == n.EIP || a == n.Addr.Addr() || a == n.Addr6.Addr() {
			return "as " + n.Name
		}
	}
	for _, on := range []*side{s, s.foreign} {
		for _, f := range model.Families {
			for _, net := range parityNetworks {
				if a == on.addr(f, net, 1) {
					return "as the bridge"
				}
			}
			for _, c := range parityContainers {
				if a == on.addr(f, c.net, c.host) {
					return "as itself"
				}
			}
		}
	}
	if from == fromSite && (a == lab.SiteAddr || a == lab.SiteAddr6) {
		return "as itself"
	}
	return "as " + a.String()
}

// checkParityPage compares the page with what was seen, or writes it.
func checkParityPage(t *testing.T, rows []row, bridge, eipnet map[row]seen) {
	t.Helper()
	path := "../../docs/bridge-parity.md"
	want := parityPage(rows, bridge, eipnet)
	if *update {
		writePage(t, path, want)
		return
	}
	if diff := cmp.Diff(readPage(t, path), want); diff != "" {
		t.Errorf("docs/bridge-parity.md (-page +seen; `make golden` rewrites it):\n%s", diff)
	}
}
