package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/test/lab"
)

const (
	strictNetwork = "strict" // one of Docker's own
	atOnce        = 20       // containers that are started together
	firstSYN      = 99       // percent of the first SYNs that have to be answered on an eipnet network
	// dockerGivesUp is more than Docker waits for a driver that is away, in a start and in its rollback.
	dockerGivesUp = 2 * time.Minute
)

// TestStarts: containers whose first instruction is a connect and a burst of
// datagrams are started, restarted, stopped and removed by the dozen, over all
// NICs, with the daemon there, killed again and again, and stopped. Not one
// packet leaves by another NIC than the pin's, or with another address.
func TestStarts(t *testing.T) {
	shapes, networks := []lab.Shape{lab.OneSubnet}, [][]string{{network, strictNetwork}}
	n, worse, every, away := 10, 6, 2*time.Second, 4*time.Second
	if soak() {
		shapes, networks = []lab.Shape{lab.OneSubnet, lab.ThreeSubnets}, [][]string{{network}, {strictNetwork}}
		n, worse, every, away = 200, 200, time.Second, 30*time.Second
	}
	for _, shape := range shapes {
		t.Run(fmt.Sprint(shape), func(t *testing.T) {
			// What Docker removes meanwhile is collected, soon enough to be seen.
			r := up(t, lab.Config{Shape: shape}, "--collect-after", "5s", "--nics", allNICs)
			r.createNetwork()
			r.createStrict()
			for _, on := range networks {
				s := r.starts(on, "there", n)
				r.told(s, "daemon there")
				// A SYN that waits for a second is late; one may be on a busy machine, and of
				// a few more than a tenth: more are started then.
				const enough = 100 - 10*(100-firstSYN)
				if len(s.late[network]) > 1 && s.share(network) < enough {
					more := r.starts(on, "more", 4*n)
					r.told(more, "daemon there, once more")
					s.add(more)
				}
				if share := s.share(network); len(s.late[network]) > 1 && share < enough {
					t.Errorf("%.1f %% of the first SYNs were answered, want %d: %q", share, firstSYN, s.late)
				}
				if len(s.refused) > 0 {
					t.Errorf("docker refused: %v", errors.Join(s.refused...))
				}
			}
			for _, on := range networks {
				back := r.killEvery(every)
				s := r.starts(on, "killed", worse)
				back()
				r.told(s, fmt.Sprintf("daemon killed every %v", every))
			}
			for _, on := range networks {
				r.stop()
				back := r.backAfter(away)
				s := r.starts(on, "away", min(worse, 2*atOnce))
				back()
				r.told(s, fmt.Sprintf("daemon away for %v", away))
			}
		})
	}
}

// createStrict makes a strict network of Docker's own.
func (r *rig) createStrict(options ...string) {
	r.t.Helper()
	r.docker(append(append([]string{"network", "create", "--label", "eip.fallback=hold"}, options...), strictNetwork)...)
	r.eventually("the network to be strict", func() error {
		s, err := r.status()
		if err == nil && !slices.ContainsFunc(s.Networks, func(n api.Network) bool { return n.Name == strictNetwork && n.Strict }) {
			err = fmt.Errorf("networks: %+v", s.Networks)
		}
		return err
	})
}

// starts is what became of a number of starts.
type starts struct {
	networks []string
	n        map[string]int      // processes that were started, by network
	late     map[string][]string // what containers told whose first SYN was not answered
	refused  []error             // what Docker did not start
}

// share is the percentage of first SYNs that were answered.
func (s *starts) share(network string) float64 {
	if s.n[network] == 0 {
		return 100
	}
	return 100 * float64(s.n[network]-len(s.late[network])) / float64(s.n[network])
}

// add adds what became of more starts.
func (s *starts) add(more *starts) {
	for _, network := range s.networks {
		s.n[network] += more.n[network]
		s.late[network] = append(s.late[network], more.late[network]...)
	}
	s.refused = append(s.refused, more.refused...)
}

// starts starts n containers, atOnce together, on one network after the other
// and pinned to one NIC after the other; on an eipnet network every other one by
// its endpoint. Half of them are restarted when they have reached the site, and
// half stopped; in the end all are removed.
func (r *rig) starts(networks []string, prefix string, n int) *starts {
	r.t.Helper()
	r.resetSniffers()
	s := &starts{networks: networks, n: make(map[string]int), late: make(map[string][]string)}
	nics := r.NICs()
	for first := 0; first < n; first += atOnce {
		pins, on := make(map[string]string), make(map[string]string)
		var names []string
		for i := first; i < min(first+atOnce, n); i++ {
			name := fmt.Sprintf("%s-%d", prefix, i)
			names, pins[name], on[name] = append(names, name), nics[i/len(networks)%len(nics)].Name, networks[i%len(networks)]
		}
		r.Site.Reset()
		running := s.each(names, func(i int, name string) error {
			byOption := on[name] != strictNetwork && i/len(networks)%2 == 1
			_, err := r.Docker(r.t.Context(), r.bursting(name, on[name], pins[name], byOption)...)
			return err
		})
		s.take(r.reach(running, 1, pins), on)
		half := running[:len(running)/2]
		again := s.each(half, func(_ int, name string) error {
			_, err := r.Docker(r.t.Context(), "restart", "-t", "0", name)
			return err
		})
		s.take(r.reach(again, 2, pins), on)
		if stopped := running[len(half):]; len(stopped) > 0 {
			r.docker(append([]string{"stop", "-t", "0"}, stopped...)...)
		}
		r.docker(append([]string{"rm", "-f"}, names...)...)
	}
	return s
}

// bursting are the arguments of docker that start a container whose first
// instruction sends, to the port of the site that belongs to its NIC.
func (r *rig) bursting(name, network, nic string, byOption bool) []string {
	args := []string{"run", "-d", "--name", name}
	if byOption {
		args = append(args, "--network", "name="+network+",driver-opt=eip.nic="+nic)
	} else {
		args = append(args, "--network", network, "--label", "eip.nic="+nic)
	}
	return append(args, lab.Image, "burst", "--stay", "--name", name, fmt.Sprintf("%v:%d", lab.SiteAddr, r.portOf(nic)))
}

// portOf is the port of the site to which only a NIC's containers talk.
func (r *rig) portOf(nic string) uint16 {
	return lab.EchoPorts[1+slices.IndexFunc(r.NICs(), func(n lab.NIC) bool { return n.Name == nic })]
}

// each does something with all names at once, and returns those with which it succeeded.
func (s *starts) each(names []string, do func(i int, name string) error) (done []string) {
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { errs[i] = do(i, name) })
	}
	all.Wait()
	for i, name := range names {
		if errs[i] == nil {
			done = append(done, name)
		} else {
			s.refused = append(s.refused, errs[i])
		}
	}
	return done
}

// take counts starts by what was told at their first connection.
func (s *starts) take(told []string, on map[string]string) {
	for _, line := range told {
		name, what, _ := strings.Cut(line, " ")
		network := on[name]
		s.n[network]++
		if what != "attempt=1 retransmits=0" {
			s.late[network] = append(s.late[network], line)
		}
	}
}

// reach waits until each container has reached the site with its time-th
// process, as who it should be, and returns what they told.
func (r *rig) reach(names []string, time int, pins map[string]string) (told []string) {
	r.t.Helper()
	r.within(dockerGivesUp, fmt.Sprintf("%d containers to reach the site", len(names)), func() error {
		lines := make(map[string][]string)
		for _, seen := range r.Site.Seen() {
			name, what, _ := strings.Cut(seen.Detail, " ")
			if seen.Proto == "tcp" && strings.HasPrefix(what, "attempt=") {
				lines[name] = append(lines[name], seen.Detail)
			}
			if nic, ok := pins[name]; ok && seen.Src.Addr() != r.EIP(nic) {
				r.t.Fatalf("%s is pinned to %s: %v", name, nic, seen)
			}
		}
		told = told[:0]
		for _, name := range names {
			if len(lines[name]) < time {
				return fmt.Errorf("%s is missing", name)
			}
			told = append(told, lines[name][time-1])
		}
		return nil
	})
	return told
}

// told reports what became of the starts, and fails the test if anything left as it should not.
func (r *rig) told(s *starts, when string) {
	r.t.Helper()
	foreign, sent := r.strayed()
	if sent == 0 {
		r.t.Errorf("%s: nothing left at all: that proves nothing", when)
	}
	r.report(when+", on "+strings.Join(s.networks, " and ")+": foreign packets", strconv.Itoa(len(foreign)), "0")
	r.report(when+", on "+strings.Join(s.networks, " and ")+": starts refused by docker", strconv.Itoa(len(s.refused)), "")
	for _, n := range s.networks {
		target := ""
		if n == network && when == "daemon there" {
			target = fmt.Sprintf("≥ %d %%", firstSYN)
		}
		r.report(when+", on "+n+": first SYN answered", fmt.Sprintf("%.1f %% of %d", s.share(n), s.n[n]), target)
	}
	for _, f := range foreign {
		r.t.Errorf("%s: foreign packet: %v", when, f)
	}
	for _, err := range s.refused {
		if !strings.Contains(err.Error(), "eipnet.sock") && !strings.Contains(err.Error(), "eipnet was away") {
			r.t.Errorf("%s: docker does not say that the driver was away: %v", when, err)
		}
	}
	r.within(3*patience, "nothing to be left", func() error {
		r.pokeDocker()
		st, err := r.status()
		if err == nil && len(st.Endpoints)+len(st.Problems) > 0 {
			err = fmt.Errorf("%+v, %v", st.Endpoints, st.Problems)
		}
		return err
	})
}

// strayed lists foreign packets, and those to a NIC's port of the site that
// left by another NIC; sent counts all to such ports.
func (r *rig) strayed() (strayed []lab.Flow, sent int) {
	r.t.Helper()
	strayed, err := r.Foreign(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, n := range r.NICs() {
		for _, f := range r.Sniffer(n.Name).Flows() {
			if f.Kind != lab.IPv4 || f.Dst != lab.SiteAddr || !slices.Contains(lab.EchoPorts[1:], f.DPort) {
				continue
			}
			sent += f.Count
			if f.DPort != r.portOf(n.Name) {
				strayed = append(strayed, f)
			}
		}
	}
	return strayed, sent
}

// killEvery kills the daemon again and again until the returned function is
// called, which waits until the daemon is back for good.
func (r *rig) killEvery(interval time.Duration) (back func()) {
	end, ended := make(chan struct{}), make(chan error, 1)
	p := r.daemon
	go func() {
		for {
			select {
			case <-end:
				ended <- nil
				return
			case <-time.After(interval):
			}
			if err := p.Stop(r.t.Context(), syscall.SIGKILL); err != nil {
				ended <- err
				return
			}
			var err error
			if p, err = r.launch(); err != nil {
				ended <- err
				return
			}
		}
	}()
	return func() {
		r.t.Helper()
		close(end)
		if err := <-ended; err != nil {
			r.t.Fatal(err)
		}
		r.daemon = p
		r.ready()
	}
}

// backAfter starts the daemon after a while; the returned function waits until it is there.
func (r *rig) backAfter(away time.Duration) (back func()) {
	started := make(chan error, 1)
	time.AfterFunc(away, func() {
		p, err := r.launch()
		r.daemon = p
		started <- err
	})
	return func() {
		r.t.Helper()
		if err := <-started; err != nil {
			r.t.Fatal(err)
		}
		r.ready()
	}
}
