package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/test/lab"
)

// TestDockerAway: Docker's API away, silent and cut off, its engine stopped,
// events by the thousand, and names that change while containers start. What
// was missed is caught up with, nothing leaves that should not, and nothing
// stays held.
func TestDockerAway(t *testing.T) {
	away := 3 * time.Second
	if soak() {
		away = time.Minute
	}
	r := prepare(t, lab.Config{Shape: lab.OneSubnet}, "--collect-after", "5s", "--nics", allNICs)
	p := r.proxied()
	r.serve()
	r.createNetwork()
	r.createStrict()
	t.Run("socket away", func(t *testing.T) {
		r.missed(t, away, func() func() {
			p.close()
			r.eventually("eipnet to see that Docker is away", r.dockerAway)
			return func() {
				if err := p.open(); err != nil {
					t.Fatal(err)
				}
			}
		})
	})
	t.Run("silent", func(t *testing.T) { r.missed(t, away, p.hush) })
	t.Run("stream cut", func(t *testing.T) { r.cut(t, p) })
	t.Run("engine stopped", func(t *testing.T) { r.frozen(t, away) })
	t.Run("events by the thousand", func(t *testing.T) { r.flood(t, p) })
	t.Run("renamed while starting", func(t *testing.T) { r.renamed(t) })
}

// missed has things happen while eipnet does not hear from Docker.
func (r *rig) missed(t *testing.T, away time.Duration, leave func() (back func())) {
	t.Helper()
	r.resetSniffers()
	before := map[string]string{"gone-before": "eth1", "stays": "eth2", "renamed-before": "eth1"}
	r.burstAll(t, network, before)
	back := leave()
	byLabel, byOption := map[string]string{"label-0": "eth0", "label-1": "eth1"}, map[string]string{"option-2": "eth2"}
	strict := map[string]string{"strict-0": "eth0", "strict-1": "eth1"}
	start := time.Now()
	for name, nic := range byOption {
		r.docker(r.bursting(name, network, nic, true)...)
	}
	for name, nic := range byLabel {
		r.docker(r.bursting(name, network, nic, false)...)
	}
	for name, nic := range strict {
		r.docker(r.bursting(name, strictNetwork, nic, false)...)
	}
	r.docker("rm", "-f", "gone-before")
	r.docker("rename", "renamed-before", "renamed-after")
	// An option is in the driver's own call: nobody has to be asked.
	r.reach([]string{"option-2"}, 1, byOption)
	<-time.After(time.Until(start.Add(away)))
	for _, s := range r.Site.Seen() {
		for _, names := range []map[string]string{byLabel, strict} {
			if name, _, _ := strings.Cut(s.Detail, " "); names[name] != "" {
				t.Fatalf("%s left before eipnet could know its label: %v", name, s)
			}
		}
	}
	back()
	start = time.Now()
	r.reach([]string{"label-0", "label-1"}, 1, byLabel)
	r.reach([]string{"strict-0", "strict-1"}, 1, strict)
	r.report(t.Name()[strings.Index(t.Name(), "/")+1:]+fmt.Sprintf(" for %v: all caught up after", away), time.Since(start).Round(10*time.Millisecond).String(), "")
	r.eventually("status to be as if nothing had been missed", func() error {
		s, err := r.status()
		var names []string
		for _, e := range s.Endpoints {
			names = append(names, e.Container)
		}
		slices.Sort(names)
		want := "label-0 label-1 option-2 renamed-after stays strict-0 strict-1"
		if err == nil && (strings.Join(names, " ") != want || len(s.Problems) > 0) {
			err = fmt.Errorf("%v, %v", names, s.Problems)
		}
		return err
	})
	r.docker("rm", "-f", "label-0", "label-1", "option-2", "renamed-after", "stays", "strict-0", "strict-1")
	r.straight(t)
}

// burstAll starts containers by their pins and waits until they have reached the site.
func (r *rig) burstAll(t *testing.T, network string, pins map[string]string) {
	t.Helper()
	r.Site.Reset()
	var names []string
	for name, nic := range pins {
		r.docker(r.bursting(name, network, nic, false)...)
		names = append(names, name)
	}
	r.reach(names, 1, pins)
}

// dockerAway is nil when eipnet says that it does not hear from Docker.
func (r *rig) dockerAway() error {
	s, err := r.status()
	if err == nil && !slices.ContainsFunc(s.Problems, func(p model.Problem) bool { return p.Code == model.CodeDockerAway }) {
		err = fmt.Errorf("problems: %v", s.Problems)
	}
	return err
}

// straight fails the test if anything left by another NIC than it should.
func (r *rig) straight(t *testing.T) {
	t.Helper()
	strayed, sent := r.strayed()
	for _, f := range strayed {
		t.Errorf("foreign packet: %v", f)
	}
	if sent == 0 {
		t.Error("nothing left at all: that proves nothing")
	}
}

// cut starts containers while the event stream breaks again and again.
func (r *rig) cut(t *testing.T, p *apiProxy) {
	t.Helper()
	n := 6
	if soak() {
		n = 60
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	cuts := 0
	go func() {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
				p.close()
				cuts++
				if err := p.open(); err != nil {
					ended <- err
					return
				}
			}
		}
		ended <- nil
	}()
	s := r.starts([]string{network, strictNetwork}, "cut", n)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	r.told(s, "stream cut every 300ms")
	t.Logf("cut %d times", cuts)
}

// frozen stops the engine's process for a while: what runs goes on, and what
// happens afterwards is as ever.
func (r *rig) frozen(t *testing.T, away time.Duration) {
	t.Helper()
	r.resetSniffers()
	pins := map[string]string{"frozen-0": "eth0", "frozen-1": "eth1"}
	r.burstAll(t, network, pins)
	if err := r.Engine().Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	start, before := time.Now(), len(r.Site.Seen())
	starting := make(chan error, 1)
	go func() {
		_, err := r.Docker(t.Context(), r.bursting("frozen-2", network, "eth2", false)...)
		starting <- err
	}()
	r.eventually("what runs to go on", func() error {
		if now := len(r.Site.Seen()); now < before+10 {
			return fmt.Errorf("the site saw %d things more", now-before)
		}
		return nil
	})
	<-time.After(time.Until(start.Add(away)))
	if err := r.Engine().Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-starting; err != nil {
		t.Fatal(err)
	}
	pins["frozen-2"] = "eth2"
	r.reach([]string{"frozen-2"}, 1, pins)
	r.docker("rm", "-f", "frozen-0", "frozen-1", "frozen-2")
	r.straight(t)
}

// flood has Docker send events by the thousand while containers start.
func (r *rig) flood(t *testing.T, p *apiProxy) {
	t.Helper()
	n, events := 4, 400
	if soak() {
		n, events = 40, 10_000
	}
	r.docker("run", "-d", "--name", "sick", "--network", network, "--label", "eip.nic=eth1",
		"--health-cmd", "x", "--health-interval", "100ms", lab.Image)
	count := r.countEvents(t, "sick")
	before := p.requests.Load()
	done := make(chan error, 1)
	go func() { done <- r.execs(t, "sick", events) }()
	s := r.starts([]string{network, strictNetwork}, "flood", n)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	asked := p.requests.Load() - before
	r.eventually(fmt.Sprintf("docker to send %d events", events), func() error {
		if seen := count(); seen < events {
			return fmt.Errorf("it sent %d", seen)
		}
		return nil
	})
	r.docker("rm", "-f", "sick")
	r.report("questions to Docker during a flood of events", fmt.Sprintf("%d for %d events", asked, events), "")
	if int(asked) > events/2 {
		t.Errorf("eipnet asked %d times while Docker sent %d events", asked, events)
	}
	r.told(s, "events by the thousand")
}

// countEvents counts what Docker sends, from now on, of programs prepared in the
// container to whoever wants all.
func (r *rig) countEvents(t *testing.T, container string) (count func() int) {
	t.Helper()
	p, err := r.Host.StartCmd(r.Host.Command(context.Background(), "docker", "events", "--format", "{{.Action}}"), "events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(context.Background(), syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	count = func() int { return strings.Count(p.Log(), "exec_create") }
	r.eventually("docker to send events", func() error {
		if err := r.execs(t, container, 1); err != nil || count() > 0 {
			return err
		}
		return errors.New("none came yet")
	})
	return count
}

// execs prepares n programs in a container and starts none: an event for each.
func (r *rig) execs(t *testing.T, container string, n int) error {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.Host.Path(lab.DockerSocket))
	}}}
	defer client.CloseIdleConnections()
	for range n {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://docker/containers/"+container+"/exec", strings.NewReader(`{"Cmd":["/app"]}`))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusCreated {
			return fmt.Errorf("preparing a program: %s", resp.Status)
		}
	}
	return nil
}

// renamed starts containers while their names change, and change hands.
func (r *rig) renamed(t *testing.T) {
	t.Helper()
	rounds := 3
	if soak() {
		rounds = 30
	}
	r.resetSniffers()
	for i := range rounds {
		for _, on := range []string{network, strictNetwork} {
			r.Site.Reset()
			pins, ids := map[string]string{"one": "eth1", "two": "eth2"}, make(map[string]string)
			for name, nic := range pins {
				args := r.bursting(name, on, nic, false)
				ids[name] = r.docker(append([]string{"create"}, args[2:]...)...) // instead of run -d
			}
			var all sync.WaitGroup
			all.Go(func() { r.must(t, "start", ids["one"]) })
			all.Go(func() {
				// Each of them is at some time called as the other was.
				r.must(t, "rename", "two", "spare")
				r.must(t, "rename", "one", "two")
				r.must(t, "rename", "spare", "one")
				r.must(t, "start", ids["two"])
			})
			all.Wait()
			if t.Failed() {
				return
			}
			r.reach([]string{"one", "two"}, 1, pins) // as they call themselves
			r.eventually("status to have the names", func() error {
				s, err := r.status()
				for _, e := range s.Endpoints {
					if want := map[string]string{"one": "eth2", "two": "eth1"}[e.Container]; err == nil && e.NIC != want {
						err = fmt.Errorf("round %d: %s is pinned to %q, want %q", i, e.Container, e.NIC, want)
					}
				}
				return err
			})
			r.docker("rm", "-f", "one", "two")
		}
	}
	r.straight(t)
}

// must runs a docker command from any goroutine.
func (r *rig) must(t *testing.T, args ...string) {
	t.Helper()
	if _, err := r.Docker(t.Context(), args...); err != nil {
		t.Error(err)
	}
}
