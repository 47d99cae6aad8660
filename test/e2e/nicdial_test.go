package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/eipnet/eipnet/test/lab"
)

// bare is a lab without an engine, with eipnet and the lab's program on its host.
func bare(t *testing.T, cfg lab.Config, args ...string) *rig {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a lab")
	}
	r := &rig{Lab: lab.Start(t, cfg), t: t, args: args}
	app, err := r.BuildApp(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for path, name := range map[string]string{binary(t): "eipnet", app: "app"} {
		if err := r.Host.Install(path, name); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() && r.daemon != nil {
			t.Logf("---- eipnet's log\n%s", r.daemon.Log())
		}
	})
	return r
}

// manages waits until the daemon says that it manages the NIC.
func (r *rig) manages(nic string) {
	r.t.Helper()
	r.eventually(nic+" to be managed", func() error {
		s, err := r.status()
		if err != nil {
			return err
		}
		for _, n := range s.NICs {
			if n.Name == nic && n.Managed {
				return nil
			}
		}
		return fmt.Errorf("its NICs: %+v", s.NICs)
	})
}

// app runs the lab's program on the host as nobody: without any privilege.
func (r *rig) app(args ...string) (string, error) {
	out, err := r.Host.Run(r.t.Context(), "setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "app"}, args...)...)
	return strings.TrimSpace(out), err
}

// says runs the program and checks what it prints.
func (r *rig) says(want string, args ...string) {
	r.t.Helper()
	if got, err := r.app(args...); err != nil || !strings.HasPrefix(got, want) {
		r.t.Errorf("app %s printed %q (%v), want %q", strings.Join(args, " "), got, err, want)
	}
}

// fails runs the program, which has to fail soon, at best of three tries, and to say why.
func (r *rig) fails(want string, args ...string) {
	r.t.Helper()
	var took time.Duration
	for range 3 {
		start := time.Now()
		out, err := r.app(args...)
		took = time.Since(start)
		switch {
		case err == nil:
			r.t.Errorf("app %s worked: %s", strings.Join(args, " "), out)
			return
		case !strings.Contains(err.Error(), want):
			r.t.Errorf("app %s: %v, want it to say %q", strings.Join(args, " "), err, want)
			return
		case took <= 2*time.Second:
			return
		}
	}
	r.t.Errorf("app %s needed %v to fail: that is the kernel's time-out", strings.Join(args, " "), took)
}

// TestNicdial: the article's program, whose client is package nicdial, on every
// NIC; without eipnet it sends nothing wrong and says what is missing.
func TestNicdial(t *testing.T) {
	moved := netip.MustParsePrefix("172.31.0.15/20")
	r := bare(t, lab.Config{ExtraAddrs: map[string][]netip.Prefix{"eth1": {moved}}})

	// The extra address comes later; until then eth1 has but the one.
	r.on("ip", "addr", "del", moved.String(), "dev", "eth1")
	eth0, eth1 := r.EIP("eth0").String(), r.EIP("eth1").String()

	t.Run("eipnet absent", func(t *testing.T) {
		r := r.in(t)
		missing := fmt.Sprintf("from %v by eth1", r.Addr("eth1"))
		r.fails("no route to the world "+missing, "nic", "eth1", "check")
		r.fails(fmt.Sprintf("no route to %v %s", lab.SiteAddr, missing), "nic", "eth1", "get", siteIP)
		r.fails("no route to", "nic", r.Addr("eth1").String(), "udp", echoUDP, "x")
		r.fails("no such NIC", "nic", "eth7", "get", siteIP)
		r.fails("no such NIC", "nic", moved.Addr().String(), "get", siteIP)
		r.says(eth0, "nic", "eth0", "get", siteIP)
		r.clean()

		// What the error advises.
		r.on("ip", "route", "add", "default", "via", r.NIC("eth1").Gateway.String(), "dev", "eth1", "table", "100")
		r.on("ip", "rule", "add", "from", r.Addr("eth1").String(), "lookup", "100")
		r.says(eth1, "nic", "eth1", "get", siteIP)
		r.on("ip", "rule", "del", "from", r.Addr("eth1").String(), "lookup", "100")
		r.on("ip", "route", "flush", "table", "100")
		r.clean()
	})

	r.args = []string{"--nics", "eth0,eth1", "--host-replies", "off"}
	r.spawn()
	r.manages("eth1")
	t.Run("by mark alone", func(t *testing.T) {
		r := r.in(t)
		got, err := r.Host.Run(t.Context(), "app", "nic", "eth1", "get", siteIP)
		if err != nil || strings.TrimSpace(got) != eth1 {
			t.Errorf("root's program printed %q: %v", got, err)
		}
		r.fails("no route", "nic", "eth1", "get", siteIP) // setting a mark needs a privilege
		r.clean()
	})
	r.stop()

	r.args = []string{"--nics", "eth0,eth1"}
	r.spawn()
	r.eventually("the host's own programs to have their rules", func() error {
		if rules := r.on("ip", "rule"); !strings.Contains(rules, "32701:") {
			return errors.New("there are: " + rules)
		}
		return nil
	})
	t.Run("the article's program", func(t *testing.T) {
		r := r.in(t)
		for _, nic := range []string{"eth0", "eth1"} {
			addr := r.Addr(nic).String()
			r.background("article-"+nic, "serve", "--addr="+addr+":8090", "--nic", addr, "--echo", "http://"+lab.SiteName+"/ip")
		}
		r.Site.Reset()
		for nic, eip := range map[string]string{"eth0": eth0, "eth1": eth1} {
			r.answers(r.url(nic, 8090), eip)
			if r.Site.Count(func(s lab.Seen) bool { return s.Proto == "dns" && s.Src.Addr().String() == eip }) == 0 {
				t.Errorf("the program on %s asked for no name by it", nic)
			}
		}
		for _, s := range r.Site.Seen() {
			if s.Src.Addr().String() != eth0 && s.Src.Addr().String() != eth1 {
				t.Errorf("the site saw %v", s)
			}
		}
		r.clean()
	})
	t.Run("clients", func(t *testing.T) {
		r := r.in(t)
		mac := r.NIC("eth1").MAC.String()
		for nic, eip := range map[string]string{"eth0": eth0, "eth1": eth1, mac: eth1, r.Addr("eth1").String(): eth1} {
			r.says("", "nic", nic, "check")
			r.says(eip, "nic", nic, "get", siteIP)
			r.says(eip, "nic", nic, "udp", echoUDP, "x")
			r.Site.Reset()
			r.says(eip, "nic", nic, "get", "http://"+lab.SiteName+"/ip")
			for _, s := range r.Site.Seen() {
				if s.Src.Addr().String() != eip {
					t.Errorf("by %s, but the site saw %v", nic, s)
				}
			}
			if r.Site.Count(func(s lab.Seen) bool { return s.Proto == "dns" }) == 0 {
				t.Errorf("by %s: no DNS query was seen: the check shows nothing", nic)
			}
		}
		r.says(r.NIC("eth1").Addr6.Addr().String(), "nic", "eth1", "get", fmt.Sprintf("http://[%v]/ip", lab.SiteAddr6))
		r.clean()
	})
	t.Run("listeners", func(t *testing.T) {
		r := r.in(t)
		r.background("listener", "nic", "eth1", "serve", ":8092")
		r.answers(r.url("eth1", 8092), eth1)
		if got, err := r.udpFromSite(eth1 + ":8092"); err != nil || !strings.Contains(got, "hello") {
			t.Errorf("UDP listener answered %q: %v", got, err)
		}
		if _, err := r.SiteGet(t.Context(), r.url("eth0", 8092)); err == nil {
			t.Error("the listener on eth1 answers on eth0")
		}
		r.clean()
	})
	t.Run("this host", func(t *testing.T) {
		r := r.in(t)
		r.background("local", "serve", "--addr=127.0.0.1:8094")
		r.eventually("a program on the loopback", func() error {
			_, err := r.app("nic", "eth1", "get", "http://127.0.0.1:8094/hello")
			return err
		})
	})
	t.Run("the address changes", func(t *testing.T) {
		r := r.in(t)
		r.background("follower", "serve", "--addr="+r.Addr("eth0").String()+":8096", "--nic", "eth1")
		r.answers(r.url("eth0", 8096), eth1)
		r.on("ip", "addr", "del", r.NIC("eth1").Addr.String(), "dev", "eth1")
		r.on("ip", "addr", "add", moved.String(), "dev", "eth1")
		r.answers(r.url("eth0", 8096), moved.Addr().String())
		r.on("ip", "addr", "del", moved.String(), "dev", "eth1")
		r.on("ip", "addr", "add", r.NIC("eth1").Addr.String(), "dev", "eth1")
		r.answers(r.url("eth0", 8096), eth1)
		r.clean()
	})
}

var echoUDP = netip.AddrPortFrom(lab.SiteAddr, 7).String()

// in is the rig as a subtest uses it.
func (r *rig) in(t *testing.T) *rig {
	sub := *r
	sub.t = t
	return &sub
}

// background starts the lab's program on the host until the end of the (sub)test.
func (r *rig) background(name string, args ...string) {
	r.t.Helper()
	p, err := r.Host.StartCmd(r.Host.Command(r.t.Context(), "app", args...), name)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { <-p.Done() })
}
