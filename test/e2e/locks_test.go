package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// caller is a container of TestLocks.
type caller struct {
	name, nic string
	addr      netip.Addr
	published string // where the site reaches it by UDP and, one port on, by TCP lines
}

// TestLocks: with the daemon dead each lock holds alone, on an eipnet network
// and on a strict one of Docker's: the ruleset flushed, our ip rules and tables
// flushed, and another program that rewrites the mark of every packet. One
// container in three is held; of the others, what leaves at all leaves right.
func TestLocks(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.createStrict("--subnet", "172.21.0.0/16")
	callers := r.callers()
	for _, c := range callers {
		if c.nic != "eth2" {
			openSession(t, "into "+c.name, r.Site, next(c.published)).goesOn(t)
		}
	}
	marks := r.marks()
	r.on("ip", "addr", "del", r.NIC("eth2").Addr.String(), "dev", "eth2")
	r.eventually("what is pinned to eth2 to be held", func() error {
		s, err := r.status()
		for _, e := range s.Endpoints {
			if strings.HasSuffix(e.Container, "eth2") && e.State != plan.StateBlocked {
				err = fmt.Errorf("%s is %s", e.Container, e.State)
			}
		}
		return err
	})

	if r.volley("with both locks", callers) == 0 {
		t.Fatal("nothing leaves with both locks: that proves nothing")
	}
	r.kill()
	r.volley("daemon dead", callers)

	seen := 0
	for _, mark := range marks {
		for _, prio := range []string{"raw", "mangle + 1", "dstnat + 1"} {
			r.rewriting(mark, prio)
			seen += r.volley(fmt.Sprintf("every mark is %s from %s on", mark, prio), callers)
			r.on("nft", "delete", "table", "inet", "rival")
		}
	}
	if seen == 0 {
		t.Error("no mark that was set by the other program led anything out: not even the right one")
	}

	r.deleteRules()
	r.deleteRoutes()
	r.volley("our rules and tables flushed", callers)

	r.serve()
	r.kill()
	r.on("nft", "flush", "ruleset")
	if sent := r.volley("ruleset flushed", callers); sent > 0 {
		t.Errorf("%d packets left though nothing bears a mark", sent)
	}
	r.serve()
	for _, c := range callers {
		if c.nic != "eth2" {
			r.leaves(t, c.name, r.EIP(c.nic).String())
		}
	}
}

// deleteRoutes deletes our routes. Flushing alone does not: iproute2 takes an
// IPv6 default of type unreachable and the last metric for the kernel's own
// null route and passes it over.
func (r *rig) deleteRoutes() {
	r.t.Helper()
	for _, family := range []string{"-4", "-6"} {
		r.on("ip", family, "route", "flush", "table", "all", "protocol", "201")
	}
	for line := range strings.Lines(r.on("ip", "-6", "route", "show", "table", "all", "protocol", "201")) {
		_, table, _ := strings.Cut(line, " table ")
		table, _, _ = strings.Cut(table, " ")
		r.on("ip", "-6", "route", "del", "unreachable", "default", "metric", "4294967295", "table", table)
	}
	if got := r.on("ip", "route", "show", "table", "all", "protocol", "201"); got != "" {
		r.t.Fatalf("our routes are still there: %s", got)
	}
}

// callers starts a container for each NIC on both networks.
func (r *rig) callers() (out []caller) {
	r.t.Helper()
	for i, n := range []struct{ network, prefix string }{{network, "172.19.0."}, {strictNetwork, "172.21.0."}} {
		for j, nic := range r.NICs() {
			c := caller{name: n.network + "-" + nic.Name, nic: nic.Name, addr: netip.MustParseAddr(fmt.Sprintf("%s%d", n.prefix, 100+j))}
			port := 8090 + 10*i
			c.published = fmt.Sprintf("%v:%d", r.EIP(c.nic), port)
			r.docker("run", "-d", "--name", c.name, "--network", n.network, "--ip", c.addr.String(), "--label", "eip.nic="+c.nic,
				"-p", fmt.Sprintf("%v:%d:8080/udp", r.Addr(c.nic), port), "-p", fmt.Sprintf("%v:%d:8081", r.Addr(c.nic), port+1), lab.Image)
			r.leaves(r.t, c.name, r.EIP(c.nic).String())
			out = append(out, c)
		}
	}
	return out
}

// next is the address with the next port.
func next(addr string) string {
	a := netip.MustParseAddrPort(addr)
	return netip.AddrPortFrom(a.Addr(), a.Port()+1).String()
}

// marks are all that a packet could be given: none, each NIC's, and the host's.
func (r *rig) marks() []string {
	r.t.Helper()
	s, err := r.status()
	if err != nil {
		r.t.Fatal(err)
	}
	marks := []string{"0x0", "0xff000000"}
	for _, n := range s.NICs {
		if n.Mark != "" {
			marks = append(marks, n.Mark)
		}
	}
	if len(marks) != 2+len(r.NICs()) {
		r.t.Fatalf("marks of %d NICs: %v", len(r.NICs()), marks)
	}
	return marks
}

// rewriting loads another program's table, which sets the mark of every packet
// and connection, on the way in at a priority and everywhere else.
func (r *rig) rewriting(mark, prio string) {
	r.t.Helper()
	chain := func(hook, kind, prio string) string {
		return fmt.Sprintf("chain %s { type %s hook %s priority %s; meta mark set %s; ct mark set %s; }\n", hook, kind, hook, prio, mark, mark)
	}
	table := "table inet rival {\n" + chain("prerouting", "filter", prio) + chain("forward", "filter", "-1") +
		chain("output", "route", "mangle + 1") + chain("postrouting", "filter", "mangle") + "}\n"
	if _, err := r.Host.RunInput(r.t.Context(), strings.NewReader(table), "nft", "-f", "-"); err != nil {
		r.t.Fatal(err)
	}
}

// volley has every container send what begins something and what belongs to
// nothing, has the site call each of them, and fails the test if anything
// leaves that is foreign. It returns how much left as it should.
func (r *rig) volley(stage string, callers []caller) int {
	r.t.Helper()
	r.resetSniffers()
	var calls sync.WaitGroup
	for _, c := range callers {
		calls.Go(func() { r.call(c) })
	}
	for _, c := range callers {
		to := r.portOf(c.nic)
		var packets [][]byte
		for _, from := range []uint16{5555, 5556} {
			packets = append(packets, ip4(c.addr, lab.SiteAddr, lab.ProtoUDP, udp(from, to, "volley")))
			for _, flags := range []byte{lab.FlagSYN, lab.FlagACK, lab.FlagFIN | lab.FlagACK, lab.FlagRST} {
				packets = append(packets, ip4(c.addr, lab.SiteAddr, lab.ProtoTCP, tcp(from+uint16(flags), to, flags)))
			}
		}
		r.send(c.name, append(packets, ip4(c.addr, lab.SiteAddr, lab.ProtoICMP, []byte{8, 0, 0xf7, 0xf7, 0, 7, 0, 1}))...) // a ping
	}
	calls.Wait()
	strayed, sent := r.strayed()
	for _, f := range strayed {
		r.t.Errorf("%s: foreign packet: %v", stage, f)
	}
	r.nothing(stage+": held, and yet", func(p lab.Packet) bool { return p.DPort == r.portOf("eth2") || p.NIC == "eth2" })
	return sent
}

// silence is how long an answer is waited for that may not come.
const silence = 200 * time.Millisecond

// call has the site send a datagram and begin a connection.
func (r *rig) call(c caller) {
	ctx, cancel := context.WithTimeout(r.t.Context(), silence)
	defer cancel()
	if conn, err := r.SiteDial(ctx, "tcp", next(c.published)); err == nil {
		conn.Close()
	}
	conn, err := r.SiteDial(ctx, "udp", c.published)
	if err != nil {
		return
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(silence)); err != nil {
		return
	}
	if _, err := conn.Write([]byte("anybody?")); err == nil {
		_, _ = conn.Read(make([]byte, 100)) // whatever is answered, the sniffers see it
	}
}
