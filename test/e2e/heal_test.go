package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/test/lab"
)

const (
	healTarget = 250 * time.Millisecond
	healLimit  = 10 * healTarget
	streamGap  = 50 * time.Millisecond // between good packets on a busy machine
)

// damage is something that others do to the host.
type damage struct {
	name string
	act  func() error
	// back gives back what only others can give: the time counts from there.
	back func() error
	// refused: the kernel does not allow it, as the table is owned.
	refused bool
	// spares: it takes nothing of ours, so that there is nothing to repair.
	spares bool
	// tries in which it was mended too late: a busy machine is slow now and then.
	tries int
}

// TestRepair damages what eipnet keeps, while a pinned container sends a
// datagram every five milliseconds, each a new connection: how long none
// arrives, and whether any left by a wrong NIC or with a wrong source.
// docs/self-healing.md has the table; -update writes it.
func TestRepair(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet, RPFilter: "2"})
	r.createNetwork()
	r.run(t, "app1", "--ip", "172.19.0.101", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	r.docker("exec", "-d", "app1", "/app", "stream", lab.SiteAddr.String()+":7")

	on := func(name string, args ...string) func() error {
		return func() error {
			_, err := r.Host.Run(t.Context(), name, args...)
			return err
		}
	}
	sh := func(script string) func() error { return on("sh", "-c", script) }
	owned := strings.Contains(r.daemon.Log(), "table_owned=true")
	var rows []string
	for _, d := range []damage{ // a flush of the ruleset takes DOCKER-USER away
		{name: "`iptables -t nat -F`", act: on("iptables", "-t", "nat", "-F"), spares: true},
		{name: "`iptables -F DOCKER-USER`", act: on("iptables", "-F", "DOCKER-USER")},
		{name: "`iptables -F EIPNET-FORWARD`", act: on("iptables", "-F", "EIPNET-FORWARD")},
	} {
		rows = append(rows, r.damage(t, d))
	}
	for _, d := range []damage{
		{name: "`nft flush ruleset`, table owned", act: on("nft", "flush", "ruleset"), spares: true},
		{name: "`nft delete table inet eipnet`, table owned", act: on("nft", "delete", "table", "inet", "eipnet"), refused: true, spares: true},
	} {
		if owned { // else the rows below are the same
			rows = append(rows, r.damage(t, d))
		}
	}
	for _, d := range []damage{
		{name: "`ip rule del`, all of protocol 201", act: sh(deleteRulesScript)},
		{name: "`ip rule del pref 5110`", act: on("ip", "rule", "del", "pref", "5110")},
		{name: "`ip route flush table 8101`, that of eth1", act: on("ip", "route", "flush", "table", "8101")},
		{name: "sysctls reset: rp_filter, ip_forward", act: on("sysctl", "-qw", "net.ipv4.conf.eth1.rp_filter=1", "net.ipv4.ip_forward=0")},
		{name: "`ip link del eip_bridge`", act: on("ip", "link", "del", bridge)},
		{name: "`ip link del eipnull0`", act: on("ip", "link", "del", "eipnull0")},
		{name: "`ip link set eth1 down`, then up", act: on("ip", "link", "set", "eth1", "down"), back: on("ip", "link", "set", "eth1", "up")},
		{name: "carrier lost, then back", act: func() error { return r.SetCarrier("eth1", false) }, back: func() error { return r.SetCarrier("eth1", true) }, spares: true},
		{name: "NIC deleted, then created again", act: func() error { return r.Unplug("eth1") }, back: func() error { return r.Plug("eth1") }},
	} {
		rows = append(rows, r.damage(t, d))
	}
	r.quiet(t)

	r.stop()
	r.args = append(r.args, "--share-tables")
	r.serve()
	for _, d := range []damage{
		{name: "`nft flush ruleset`, table shared", act: on("nft", "flush", "ruleset")},
		{name: "`nft delete table inet eipnet`, table shared", act: on("nft", "delete", "table", "inet", "eipnet")},
		{name: "`nft flush map inet eipnet pin4`, table shared", act: on("nft", "flush", "map", "inet", "eipnet", "pin4")},
	} {
		rows = append(rows, r.damage(t, d))
	}
	r.quiet(t)
	r.healingPage(t, rows)
}

// damage does it and returns the table's row.
func (r *rig) damage(t *testing.T, d damage) string {
	t.Helper()
	good := func(since time.Time) (times []time.Time) {
		for _, s := range r.Site.Seen() {
			if s.Proto == "udp" && s.Src.Addr() == r.EIP("eth1") && s.Time.After(since) {
				times = append(times, s.Time)
			}
		}
		return times
	}
	flows := func(since time.Time) {
		t.Helper()
		r.eventually("datagrams to arrive: "+d.name, func() error {
			if n := len(good(since)); n < 20 {
				return fmt.Errorf("%d datagrams", n)
			}
			return nil
		})
	}
	r.resetSniffers()
	said := len(r.daemon.Log())
	began := time.Now()
	flows(began)
	if err := d.act(); (err != nil) != d.refused {
		t.Errorf("%s: %v, want it refused: %v", d.name, err, d.refused)
	}
	from := began
	if d.back != nil {
		r.eventually("the container to be held: "+d.name, func() error {
			if since := time.Now().Add(-10 * streamGap); len(good(since)) > 0 {
				return errors.New("datagrams arrive")
			}
			return nil
		})
		from = time.Now()
		if err := d.back(); err != nil {
			t.Fatal(err)
		}
	}
	if !d.spares {
		r.eventually("the daemon to write what was lost: "+d.name, func() error {
			if !strings.Contains(r.daemon.Log()[said:], `msg="host changed"`) {
				return errors.New("it has written nothing")
			}
			return nil
		})
	}
	flows(time.Now().Add(10 * streamGap)) // nothing comes after it
	r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
	out := outage(from, good(from), d.back != nil)
	if err := r.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	foreign, err := r.Foreign(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range foreign {
		t.Errorf("%s: foreign packet: %v", d.name, f)
	}
	if out > healLimit {
		if d.tries++; d.tries < 3 && !t.Failed() {
			t.Logf("%s: mended only after %v; once more", d.name, out)
			return r.damage(t, d)
		}
		t.Errorf("%s: mended only after %v", d.name, out)
	}
	took := fmt.Sprintf("%d ms", out.Milliseconds())
	if d.refused {
		took = "refused by the kernel"
	}
	r.report(d.name, took, healTarget.String())
	return fmt.Sprintf("| %s | %s | %d |", d.name, took, len(foreign))
}

// outage returns the longest time without a good datagram, or, where something
// had to be given back, the time from then to the first one.
func outage(from time.Time, good []time.Time, first bool) time.Duration {
	var longest time.Duration
	for _, at := range good {
		longest = max(longest, at.Sub(from))
		from = at
		if first {
			break
		}
	}
	return longest
}

// quiet checks that nobody writes anything into the kernel while nothing
// happens, and the daemon has nothing to say.
func (r *rig) quiet(t *testing.T) {
	t.Helper()
	r.eventually("a second in which nothing is written", func() error {
		before := len(r.daemon.Log())
		out, err := r.Host.Run(t.Context(), "timeout", "1", "sh", "-c", "ip monitor link address route rule & nft monitor & wait")
		if err == nil {
			t.Fatal("the monitors ended by themselves")
		}
		if out = strings.TrimSpace(out); out != "" {
			return fmt.Errorf("this was: %s", out)
		}
		if said := r.daemon.Log()[before:]; strings.Contains(said, "level=INFO") {
			return fmt.Errorf("the daemon said %s", said)
		}
		return nil
	})
}

var repairTable = regexp.MustCompile("(?s)<!-- measured: repair -->\n.*?\n\n")

// healingPage compares the rows with those of docs/self-healing.md, times
// aside, or writes them there.
func (r *rig) healingPage(t *testing.T, rows []string) {
	t.Helper()
	t.Logf("\n%s", strings.Join(rows, "\n"))
	path := filepath.Join("..", "..", "docs", "self-healing.md")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head := "<!-- measured: repair -->\n| What others do | No good packet for | Foreign packets |\n|---|---|---|\n"
	want := head + strings.Join(rows, "\n") + "\n\n"
	if *update {
		text := repairTable.ReplaceAllLiteralString(string(page), want)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	structure := func(text string) []string {
		return strings.Split(regexp.MustCompile(`\d+ ms`).ReplaceAllString(text, "time"), "\n")
	}
	if diff := cmp.Diff(structure(repairTable.FindString(string(page))), structure(want)); diff != "" {
		t.Errorf("docs/self-healing.md has another table; -update writes it (-page +run):\n%s", diff)
	}
}
