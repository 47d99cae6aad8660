package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/test/lab"
)

// TestNeighbourAsWithout: a neighbour without a label, on a stock network where
// a container gets pinned, forwards exactly as it did before eipnet was started.
func TestNeighbourAsWithout(t *testing.T) {
	r := prepare(t, lab.Config{Shape: lab.OneSubnet})
	r.docker("network", "create", "--subnet", "172.20.0.0/16", "-o", "com.docker.network.bridge.name=br-stock", "stock")
	r.docker("run", "-d", "--name", "plain", "--network", "stock", "--ip", "172.20.0.50", "-p", "8103:8080", "-p", "8103:8080/udp", lab.Image)
	r.docker("run", "-d", "--name", "labelled", "--network", "stock", "--label", "eip.nic=eth1", lab.Image)
	r.eventually("both to listen", func() error {
		_, err := r.exec("plain", "get", "http://labelled:8080/hello")
		_, err2 := r.SiteGet(t.Context(), fmt.Sprintf("http://%v:8103/hello", r.EIP("eth0")))
		return errors.Join(err, err2)
	})
	without := r.forwards()
	r.serve()
	r.leaves(t, "labelled", r.EIP("eth1").String())
	if diff := cmp.Diff(without, r.forwards()); diff != "" {
		t.Errorf("plain does not forward as without eipnet (-without +with):\n%s", diff)
	}
	r.report("differences in what an unlabelled neighbour does", "0", "0")
	r.clean()
}

var packetCounts = regexp.MustCompile(`\[\d+:\d+\]`)

// forwards tells how the container plain reaches others, and is reached.
func (r *rig) forwards() map[string]string {
	r.t.Helper()
	facts := make(map[string]string)
	told := func(what, out string, err error) {
		facts[what] = fmt.Sprint(out, err)
	}
	r.resetSniffers()
	r.on("conntrack", "-F")
	for what, args := range map[string][]string{
		"as whom it leaves":        {"get", siteIP},
		"to the labelled one":      {"get", "http://labelled:8080/hello"},
		"to its own host":          {"get", fmt.Sprintf("http://%v:8103/hello", r.Addr("eth0"))},
		"names":                    {"lookup", "labelled"},
		"who calls the labelled":   {"get", "http://labelled:8080/remote"},
		"who calls by publication": {"get", fmt.Sprintf("http://%v:8103/remote", r.Addr("eth0"))},
	} {
		out, err := r.exec("plain", args...)
		if what != "names" {
			out = host(out) // ports differ from one call to the next
		}
		told(what, out, err)
	}
	out, err := r.exec("plain", "udp", lab.SiteAddr.String()+":7", "hi")
	told("UDP", host(out), err)
	_, err = r.exec("plain", "ping", lab.SiteAddr.String())
	told("ping", "", err)
	_, err = r.exec("plain", "ping", "172.20.0.1")
	told("ping to the gateway", "", err)
	for _, path := range []string{"hello", "remote"} {
		out, err = r.SiteGet(r.t.Context(), fmt.Sprintf("http://%v:8103/%s", r.EIP("eth0"), path))
		told("called: "+path, host(out), err)
	}
	out, err = r.udpFromSite(fmt.Sprintf("%v:8103", r.EIP("eth0")))
	told("called by UDP", host(out), err)
	if err := r.Settle(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	for _, n := range r.NICs() {
		var protos []string
		for _, f := range r.Sniffer(n.Name).Flows() {
			if f.Kind == lab.IPv4 {
				protos = append(protos, fmt.Sprintf("%d from %v to %v", f.Proto, f.Src, f.Dst))
			}
		}
		slices.Sort(protos)
		facts["what left by "+n.Name] = strings.Join(slices.Compact(protos), "\n")
	}
	facts["its route"] = r.on("ip", "route", "get", lab.SiteAddr.String(), "from", "172.20.0.50", "iif", "br-stock")
	facts["iptables"] = packetCounts.ReplaceAllString(comments.ReplaceAllString(r.on("iptables-save"), ""), "")
	facts["marks of its connections"] = strings.Join(slices.Compact(slices.Sorted(slices.Values(
		regexp.MustCompile(`mark=\d+`).FindAllString(r.on("conntrack", "-L", "-s", "172.20.0.50"), -1)))), " ")
	return facts
}

var comments = regexp.MustCompile(`(?m)^#.*\n`)

// host is an address without its port; other texts are as they are.
func host(s string) string {
	addr, rest, _ := strings.Cut(s, " ")
	if i := strings.LastIndex(addr, ":"); i >= 0 {
		addr = addr[:i]
	}
	return strings.TrimSpace(addr + " " + rest)
}

// TestLabelInTime: a label on a container of a stock network counts before its
// process has started: between Docker's network connect and the first
// instruction there are 10 ms (28.5) to 200 ms (20.10).
func TestLabelInTime(t *testing.T) {
	n, all := 8, 50
	if soak() {
		n = all
	}
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.docker("network", "create", "stock")
	// The network is watched, and what is about NICs is settled.
	r.start(t, "first", "--network", "stock", "--label", "eip.nic=eth1")
	r.leaves(t, "first", r.EIP("eth1").String())
	now := time.Now()
	since := fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond()) // it may ask later than the first one connects
	events, err := r.Host.StartCmd(r.Host.Command(context.Background(), "docker", "events", "--since", since, "--filter", "type=network", "--filter", "event=connect", "--format", "{{json .}}"), "connects")
	if err != nil {
		t.Fatal(err)
	}
	var early, started int
	var toPin, toPacket []time.Duration
	// A machine that has other things to do is late now and then: where too many of a few were, more are started.
	for ; started < n || early > n/5 && started < all; started++ {
		r.resetSniffers()
		begun := time.Now()
		id := r.docker(r.bursting("hasty", "stock", "eth1", false)...)
		r.reachEver("hasty")
		connected := r.connectedAt(events, id)
		pinned := r.changedAfter(begun)
		var first time.Time
		strayed, _ := r.strayed()
		for _, f := range append(r.Sniffer("eth1").Flows(), strayed...) {
			if f.DPort == r.portOf("eth1") && (first.IsZero() || f.First.Before(first)) {
				first = f.First
			}
		}
		if len(strayed) > 0 {
			early++
			t.Logf("not in time: connected %v, pinned %v, first packet %v: %v", connected, pinned, first, strayed)
		}
		toPin, toPacket = append(toPin, pinned.Sub(connected)), append(toPacket, first.Sub(pinned))
		r.docker("rm", "-f", "hasty")
	}
	if err := events.Stop(t.Context(), syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	r.report("from network connect to the pin (negative: pinned before)", spread(toPin), "")
	r.report("from the pin to the first packet", spread(toPacket), "> 0")
	r.report("containers that sent before they were pinned", fmt.Sprintf("%d of %d", early, started), "0")
	if !strings.Contains(r.daemon.Log(), `msg="a port came up"`) {
		t.Error("the daemon waited for Docker's word")
	}
	if early > started/5 {
		t.Errorf("%d of %d containers sent before they were pinned", early, started)
	}
}

// spread shows the median and both ends.
func spread(ds []time.Duration) string {
	slices.Sort(ds)
	ms := func(d time.Duration) string { return strconv.FormatFloat(float64(d.Microseconds())/1000, 'f', 1, 64) }
	return fmt.Sprintf("%s ms (%s to %s)", ms(ds[len(ds)/2]), ms(ds[0]), ms(ds[len(ds)-1]))
}

// reachEver waits until the container has reached the site, as whoever.
func (r *rig) reachEver(name string) {
	r.t.Helper()
	r.eventually(name+" to reach the site", func() error {
		if r.Site.Count(func(s lab.Seen) bool { return strings.HasPrefix(s.Detail, name+" attempt=") }) == 0 {
			return errors.New("it did not")
		}
		return nil
	})
	r.Site.Reset()
}

// connectedAt is when Docker says that it connected the container.
func (r *rig) connectedAt(events *lab.Process, id string) (at time.Time) {
	r.t.Helper()
	r.eventually("the connect event", func() error {
		for line := range strings.Lines(events.Log()) {
			var e struct {
				TimeNano int64 `json:"timeNano"`
				Actor    struct{ Attributes map[string]string }
			}
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				return err
			}
			if e.Actor.Attributes["container"] == id {
				at = time.Unix(0, e.TimeNano)
				return nil
			}
		}
		return errors.New("there is none")
	})
	return at
}

var tableChanged = regexp.MustCompile(`time=(\S+) level=INFO msg="changed the nftables table"`)

// changedAfter is when the daemon last changed pins since then. What it removes
// of a container that has just gone comes before what it adds.
func (r *rig) changedAfter(since time.Time) (at time.Time) {
	r.t.Helper()
	r.eventually("the daemon to change pins", func() error {
		for _, m := range tableChanged.FindAllStringSubmatch(r.daemon.Log(), -1) {
			t, err := time.Parse(time.RFC3339, m[1])
			if err != nil {
				return err
			}
			// The log's clock has milliseconds.
			if t.After(since.Add(-time.Millisecond)) {
				at = t
			}
		}
		if at.IsZero() {
			return errors.New("it did not")
		}
		return nil
	})
	return at
}
