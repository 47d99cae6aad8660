package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

const (
	walkQuiet = 25 // steps between two looks at everything
	walkTime  = 35 * time.Second
)

// TestWalk does anything that can happen to a host, in any order, from a
// printed seed (EIPNET_SEED repeats it), while every container sends without
// end: no packet leaves a NIC with a foreign source. After every few steps what
// is away comes back; then each container leaves as it should, and nobody
// writes anything. At the end all is removed, and the host is as before.
func TestWalk(t *testing.T) {
	seed, steps := uint64(1), 50
	if soak() {
		seed, steps = uint64(time.Now().UnixNano()), 500
	}
	if s := os.Getenv("EIPNET_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("EIPNET_SEED=%d", seed)
	args := []string{"--collect-after", "5s", "--nics", "eth1,eth2"}
	if seed%2 == 1 {
		args = append(args, "--share-tables") // else nobody but the daemon can break them
	}
	w := &walker{
		rig: up(t, lab.Config{Shape: lab.OneSubnet, RPFilter: "1"}, args...), rng: rand.New(rand.NewPCG(seed, 0)),
		alive: true, strict: seed%4 < 2, containers: make(map[string]*walked), down: make(map[string]string),
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("EIPNET_SEED=%d; what was done:\n%s", seed, strings.Join(w.done, "\n"))
		}
	})
	plain := []string{"network", "create", "--subnet", "172.20.0.0/16"}
	if w.strict {
		plain = append(plain, "--label", "eip.strict=true")
	}
	w.docker(append(plain, "plain")...)
	for _, nic := range []string{"eth1", "eth2"} { // which costs IPv6 addresses for good
		w.on("ip", "link", "set", nic, "down")
		w.on("ip", "link", "set", nic, "up")
	}
	w.docker("run", "--rm", "--network", "plain", lab.Image, "get", siteIP) // whatever Docker makes for its first container stays
	w.quiet(t)
	before := w.state()
	w.createNetwork()
	w.resetSniffers()

	began, n := time.Now(), 0
	for ; n < steps && (soak() || time.Since(began) < walkTime); n++ {
		w.step()
		if n%walkQuiet == walkQuiet-1 {
			w.settle()
		}
	}
	w.settle()
	w.report("steps of a random walk", strconv.Itoa(n), "500")
	for name := range w.containers {
		w.docker("rm", "-f", name)
	}
	w.docker("network", "rm", network)
	w.eventually("nothing to be left", func() error {
		if diff := cmp.Diff(before, w.state()); diff != "" {
			return fmt.Errorf("(-before +after):\n%s", diff)
		}
		return nil
	})
	w.clean()
}

// walker goes through a lab.
type walker struct {
	*rig
	rng        *rand.Rand
	done       []string
	made       int
	alive      bool // the daemon runs
	strict     bool // Docker's network is
	containers map[string]*walked
	down       map[string]string // NIC → how it comes back
	broken     int               // the lock that was broken since all was quiet; 0: none
}

// walked is a container of the walk.
type walked struct {
	nic, rebound string // what its label says, and what was said later
	networks     []string
	running      bool
}

// leavesBy is the NIC that it should leave by.
func (c *walked) leavesBy() string {
	switch {
	case c.rebound != "":
		return c.rebound
	case c.nic != "":
		return c.nic
	}
	return "eth0"
}

// unordered is what comes back in any order where it stands together in a host's
// state: eipnet's ip rules, of which no two of one preference match the same, nftables' tables, and in them
// the rules and chains of Docker, which goes through its networks in any order when it starts. In chains that
// are the user's and in FORWARD the order counts.
var unordered = []string{`^\d+: .* proto 201\n`, `^-A (?:DOCKER|DOCKER-(?:BRIDGE|CT|FORWARD|ISOLATION-STAGE-[12])|POSTROUTING) .*\n`, `^(?: [io]ifname| ip6? [sd]addr| counter) .*\n`, `^ chain (?s:.*?)\n \}\n`, `^table (?s:.*?)\n\}\n`}

// state is the host's, in one order.
func (w *walker) state() string {
	w.t.Helper()
	s, err := w.HostState(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, one := range unordered {
		item := regexp.MustCompile("(?m)" + one)
		s = regexp.MustCompile("(?m)(?:"+one+")+").ReplaceAllStringFunc(s, func(run string) string {
			items := item.FindAllString(run, -1)
			slices.Sort(items)
			return strings.Join(items, "")
		})
	}
	return s
}

// step does one thing that is possible now.
func (w *walker) step() {
	w.t.Helper()
	ops := []struct {
		weight int
		do     func() string // empty: not now
	}{
		{8, w.opRun},
		{4, w.opStop},
		{5, w.opStart},
		{3, w.opRemove},
		{3, w.opConnect},
		{6, w.opRebind},
		{5, w.opDown},
		{3, w.opCarrier},
		{6, w.opDamage},
		{3, w.opKill},
		{4, w.opServe},
		{1, w.opEngine},
	}
	total := 0
	for _, o := range ops {
		total += o.weight
	}
	for {
		n := w.rng.IntN(total)
		i := slices.IndexFunc(ops, func(o struct {
			weight int
			do     func() string
		},
		) bool {
			n -= o.weight
			return n < 0
		})
		if what := ops[i].do(); what != "" {
			w.done = append(w.done, what)
			return
		}
	}
}

// pick draws a container for which fits is true. On eipnet networks Docker can
// do nothing while no daemon runs.
func (w *walker) pick(fits func(*walked) bool) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(w.containers)) {
		c := w.containers[name]
		if fits(c) && (w.alive || !slices.Contains(c.networks, network)) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return names[w.rng.IntN(len(names))]
}

func running(c *walked) bool { return c.running }
func stopped(c *walked) bool { return !c.running }

func (w *walker) opRun() string {
	const most = 6
	c := &walked{nic: []string{"", "eth0", "eth1", "eth2", "eth1"}[w.rng.IntN(5)], networks: []string{[]string{network, "plain"}[w.rng.IntN(2)]}, running: true}
	if len(w.containers) == most || !w.alive && c.networks[0] == network {
		return ""
	}
	w.made++
	name := fmt.Sprintf("app%d", w.made)
	args := []string{"run", "-d", "--name", name, "--network", c.networks[0]}
	if c.nic != "" {
		args = append(args, "--label", "eip.nic="+c.nic)
	}
	w.docker(append(args, lab.Image, "stream", "--interval", "20ms", lab.SiteAddr.String()+":7")...)
	w.containers[name] = c
	return strings.Join(args, " ")
}

func (w *walker) opStop() string {
	name := w.pick(running)
	if name == "" {
		return ""
	}
	w.docker("stop", "-t", "0", name)
	w.containers[name].running = false
	return "stop " + name
}

func (w *walker) opStart() string {
	name := w.pick(stopped)
	if name == "" {
		return ""
	}
	w.docker("start", name)
	w.containers[name].running = true
	return "start " + name
}

func (w *walker) opRemove() string {
	name := w.pick(func(*walked) bool { return true })
	if name == "" {
		return ""
	}
	w.docker("rm", "-f", name)
	delete(w.containers, name)
	return "rm -f " + name
}

// opConnect puts a container on the other network, too, or takes it off that.
func (w *walker) opConnect() string {
	name := w.pick(running)
	if name == "" || !w.alive {
		return ""
	}
	c := w.containers[name]
	if len(c.networks) == 2 {
		i := w.rng.IntN(2)
		w.docker("network", "disconnect", c.networks[i], name)
		what := "disconnect " + c.networks[i] + " " + name
		c.networks = slices.Delete(c.networks, i, i+1)
		return what
	}
	other := "plain"
	if c.networks[0] == "plain" {
		other = network
	}
	w.docker("network", "connect", other, name)
	c.networks = append(c.networks, other)
	return "connect " + other + " " + name
}

func (w *walker) opRebind() string {
	name := w.pick(running)
	if name == "" || !w.alive {
		return ""
	}
	c := w.containers[name]
	to := []string{"eth0", "eth1", "eth2", ""}[w.rng.IntN(4)]
	if to == "" {
		if c.rebound == "" {
			return ""
		}
		w.on("eipnet", "rebind", "--clear", name)
	} else {
		w.eventually("eipnet to know "+name, func() error {
			_, err := w.rebind(name, to)
			return err
		})
	}
	c.rebound = to
	return "rebind " + name + " " + to
}

func (w *walker) opDown() string    { return w.away("link") }
func (w *walker) opCarrier() string { return w.away("carrier") }

// away takes a NIC away, or brings it back.
func (w *walker) away(how string) string {
	nic := []string{"eth1", "eth2"}[w.rng.IntN(2)]
	switch w.down[nic] {
	case "":
		w.down[nic] = how
		if how == "link" {
			w.on("ip", "link", "set", nic, "down")
		} else {
			w.carrier(nic, false)
		}
		return nic + " " + how + " down"
	case how:
		w.back(nic)
		return nic + " " + how + " up"
	}
	return ""
}

func (w *walker) back(nic string) {
	if w.down[nic] == "link" {
		w.on("ip", "link", "set", nic, "up")
	} else {
		w.carrier(nic, true)
	}
	delete(w.down, nic)
}

func (w *walker) carrier(nic string, up bool) {
	w.t.Helper()
	if err := w.SetCarrier(nic, up); err != nil {
		w.t.Fatal(err)
	}
}

const (
	deletesTable = "nft delete table inet eipnet"
	flushesGuard = "nft flush chain inet eipnet guard-post"
)

// opDamage breaks something of one lock; the other one has to hold meanwhile,
// so that it is left alone until all is quiet. What the kernel refuses (the
// tables of a daemon that owns them) is no damage.
func (w *walker) opDamage() string {
	script, lock := [...]string{
		deleteRulesScript, "ip route flush table 8101", "ip rule del pref 5110", "ip link del " + bridge, "ip link del eipnull0", "sysctl -qw net.ipv4.conf.eth1.rp_filter=1",
		deletesTable, "nft delete table bridge eipnet", flushesGuard, "iptables -F EIPNET-FORWARD",
	}, 1
	i := w.rng.IntN(len(script))
	if i >= 6 {
		lock = 2
	}
	onlyLock := script[i] == deletesTable || script[i] == flushesGuard
	if w.broken == 3-lock || onlyLock && !w.strict {
		return "" // on a network that is not strict the table is the only lock
	}
	w.broken = lock
	_, err := w.Host.Run(w.t.Context(), "sh", "-c", script[i])
	return fmt.Sprintf("%s (%v)", script[i], err)
}

func (w *walker) opKill() string {
	if !w.alive {
		return ""
	}
	w.alive = false
	if w.rng.IntN(3) == 0 {
		w.stop()
		return "daemon stopped"
	}
	w.kill()
	return "daemon killed"
}

func (w *walker) opServe() string {
	if w.alive {
		return ""
	}
	w.serve()
	w.alive = true
	return "daemon started"
}

// opEngine restarts Docker, which takes its containers along.
func (w *walker) opEngine() string {
	if !w.alive || !soak() {
		return ""
	}
	if err := w.RestartEngine(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	for _, c := range w.containers {
		c.running = false
	}
	return "engine restarted"
}

// settle brings back whatever is away, and looks.
func (w *walker) settle() {
	w.t.Helper()
	for _, nic := range slices.Sorted(maps.Keys(w.down)) {
		w.back(nic)
	}
	if !w.alive {
		w.opServe()
	}
	for _, name := range slices.Sorted(maps.Keys(w.containers)) {
		c := w.containers[name]
		if !c.running {
			continue
		}
		want := w.EIP(c.leavesBy()).String()
		w.eventually(name+" to leave as "+want, func() error {
			ctx, cancel := context.WithTimeout(w.t.Context(), answerTime)
			defer cancel()
			got, err := w.Docker(ctx, "exec", name, "/app", "get", siteIP)
			if got = strings.TrimSpace(got); err == nil && got != want {
				err = fmt.Errorf("it leaves as %s", got)
			}
			return err
		})
	}
	w.eventually("status to say so", func() error {
		s, err := w.status()
		if err != nil {
			return err
		}
		return w.says(s)
	})
	w.quiet(w.t)
	w.clean()
	w.broken = 0
	w.done = append(w.done, "-- quiet")
}

// says compares a status with what should be.
func (w *walker) says(s api.Status) error {
	var errs []error
	for _, p := range s.Problems {
		errs = append(errs, errors.New(p.String()))
	}
	seen := make(map[string]int)
	for _, e := range s.Endpoints {
		c := w.containers[e.Container]
		switch {
		case c == nil || !c.running:
			errs = append(errs, fmt.Errorf("%s is listed", e.Container))
		case c.nic+c.rebound == "" && e.State != plan.StateUnpinned, c.nic+c.rebound != "" && (e.State != plan.StatePinned || e.NIC != c.leavesBy()):
			errs = append(errs, fmt.Errorf("%s is %s %s, want %s", e.Container, e.State, e.NIC, c.leavesBy()))
		}
		seen[e.Container]++
	}
	for name, c := range w.containers {
		// Of Docker's network only pinned containers are listed for sure.
		if c.running && c.nic+c.rebound != "" && seen[name] != len(c.networks) {
			errs = append(errs, fmt.Errorf("%s is listed %d times", name, seen[name]))
		}
	}
	return errors.Join(errs...)
}
