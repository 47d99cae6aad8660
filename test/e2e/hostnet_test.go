package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/snat"
	"github.com/eipnet/eipnet/test/lab"
)

// onHost starts a container on the host's network.
func (r *rig) onHost(name, nic string, command ...string) (id string) {
	r.t.Helper()
	args := []string{"run", "-d", "--name", name, "--network", "host"}
	if nic != "" {
		args = append(args, "--label", "eip.nic="+nic)
	}
	return r.docker(append(append(args, lab.Image), command...)...)
}

// decided waits until status shows a container in a state.
func (r *rig) decided(name string, want plan.State) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("%s to be %s", name, want), func() error {
		s, err := r.status()
		if err != nil {
			return err
		}
		for _, e := range s.Endpoints {
			if e.Container == name && e.State == want {
				return nil
			}
		}
		return fmt.Errorf("endpoints %+v, problems %v", s.Endpoints, s.Problems)
	})
}

// seenAs checks what the site sees when a container calls it.
func (r *rig) seenAs(name, want string) {
	r.t.Helper()
	r.eventually(name+" to be answered", func() error {
		got, err := r.exec(name, "get", siteIP)
		if err == nil && got != want {
			r.t.Fatalf("%s is seen as %s, want %s", name, got, want)
		}
		return err
	})
}

// began counts datagrams and attempts to connect that left for an address, by NIC.
func (r *rig) began(dst netip.Addr) map[string]int {
	r.t.Helper()
	if err := r.Settle(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	seen := make(map[string]int)
	for _, n := range r.NICs() {
		seen[n.Name] = r.Sniffer(n.Name).Seen(func(p lab.Packet) bool {
			return lab.To(lab.ProtoUDP, dst)(p) || lab.To(lab.ProtoICMP, dst)(p) || lab.To(lab.ProtoTCP, dst)(p) && p.Flags&lab.FlagSYN != 0
		})
	}
	return seen
}

// hears waits until the site hears more of a program from an address, by each protocol.
func (r *rig) hears(name, from string, protocols ...string) {
	r.t.Helper()
	since := time.Now()
	for _, proto := range protocols {
		r.eventually(fmt.Sprintf("the site to hear %s by %s from %s", name, proto, from), func() error {
			if r.Site.Count(func(s lab.Seen) bool {
				return s.Time.After(since) && s.Proto == proto && s.Src.Addr().String() == from && strings.HasPrefix(s.Detail, name+" ")
			}) == 0 {
				return fmt.Errorf("it heard %v", r.Site.Seen())
			}
			return nil
		})
	}
}

// cgroupSets prints what the table says about containers on the host's network.
func (r *rig) cgroupSets() string {
	r.t.Helper()
	var b strings.Builder
	for _, args := range []string{"map inet eipnet cgroup-pin", "set inet eipnet cgroup-held", "set inet eipnet cgroup-except4", "set inet eipnet cgroup-except6"} {
		b.WriteString(r.on("nft", append([]string{"list"}, strings.Fields(args)...)...))
	}
	return b.String()
}

// TestHostNetwork: containers on the host's network, each pinned for itself, where
// the host's cgroups are unified.
func TestHostNetwork(t *testing.T) {
	r := up(t, lab.Config{Unified: true}, "--nics", allNICs)
	if err := r.InHost(func() error { return snat.ProbeCgroups(0) }); err != nil {
		t.Skip(err)
	}
	eth0, eth1 := r.EIP("eth0").String(), r.EIP("eth1").String()
	if rules := r.on("nft", "list", "table", "inet", "eipnet"); strings.Contains(rules, "cgroup") {
		t.Errorf("there are rules about cgroups without a pin:\n%s", rules)
	}
	r.resetSniffers()

	ids := []string{r.onHost("web", "eth1", "serve", "--addr=:8090"), r.onHost("held", "eth9", "serve", "--addr=:8094")}
	r.onHost("plain", "", "serve", "--addr=:8092")
	r.decided("web", plan.StatePinned)
	r.decided("held", plan.StateBlocked)

	others := func(r *rig) {
		r.t.Helper()
		r.seenAs("plain", eth0)
		if got, err := r.HostGet(r.t.Context(), netip.Addr{}, siteIP); err != nil || got != eth0 {
			r.t.Errorf("a program of the host is seen as %q, %v", got, err)
		}
	}
	t.Run("pinned", func(t *testing.T) {
		r := r.in(t)
		r.seenAs("web", eth1)
		if got, err := r.exec("web", "get", siteIP6); err != nil || got != r.Addr6("eth1").String() {
			t.Errorf("by IPv6 it is seen as %q, %v", got, err)
		}
		for _, args := range [][]string{{"udp", lab.SiteAddr2.String() + ":7", "hello"}, {"ping", lab.SiteAddr2.String()}, {"burst", lab.SiteAddr2.String() + ":7"}} {
			if got, err := r.exec("web", args...); err != nil {
				t.Errorf("%v: %q, %v", args, got, err)
			}
		}
		for _, proto := range []uint8{lab.ProtoUDP, lab.ProtoICMP, lab.ProtoTCP} {
			r.onlyBy("eth1", proto, lab.SiteAddr2)
		}
		// It answers by the NIC that was asked, as all do, and asks by its own.
		r.answers(r.url("eth1", 8090), eth1)
		r.answers(r.url("eth0", 8090), eth1)
		r.datagrams(eth0, eth1)
		r.clean()
	})
	t.Run("others", func(t *testing.T) {
		r := r.in(t)
		others(r)
		r.answers(r.url("eth0", 8092), eth0)
		r.answers(r.url("eth1", 8092), eth0)
		r.clean()
	})
	t.Run("held", func(t *testing.T) {
		r := r.in(t)
		r.resetSniffers()
		for _, args := range [][]string{
			{"get", siteIP}, {"get", siteIP6}, {"udp", lab.SiteAddr.String() + ":7", "hello"}, {"ping", lab.SiteAddr.String()}, {"burst", lab.SiteAddr.String() + ":7"},
		} {
			if got, err := r.exec("held", args...); err == nil {
				t.Errorf("%v: %q", args, got)
			}
		}
		for nic, n := range r.began(lab.SiteAddr) {
			if n > 0 {
				t.Errorf("%d packets left by %s", n, nic)
			}
		}
		for _, nic := range r.NICs() {
			if n := r.Sniffer(nic.Name).Seen(lab.To(lab.ProtoTCP, lab.SiteAddr6)); n > 0 {
				t.Errorf("%d packets left by %s over IPv6", n, nic.Name)
			}
		}
		if got, err := r.SiteGet(t.Context(), r.url("eth0", 8094)+"hello"); err == nil {
			t.Errorf("it answers %q", got)
		}
		if s := r.Site.Seen(); len(s) > 0 {
			t.Errorf("the site saw %v", s)
		}
		r.clean()
	})
	t.Run("begun before the pin", func(t *testing.T) {
		r := r.in(t)
		defer r.docker("rm", "-f", "early")
		r.onHost("early", "eth1", "burst", "--stay", "--name", "early", lab.SiteAddr2.String()+":7000")
		r.decided("early", plan.StatePinned)
		r.resetSniffers()
		r.hears("early", eth1, "tcp")
		if n := r.began(lab.SiteAddr2); n["eth0"]+n["eth2"] > 0 {
			t.Errorf("left by NIC: %v, want by eth1 only", n)
		}
		r.clean()
	})
	t.Run("the daemon is started anew", func(t *testing.T) {
		whole, r := r, r.in(t)
		defer r.docker("rm", "-f", "talks")
		r.onHost("talks", "eth1", "sleep")
		r.decided("talks", plan.StatePinned)
		r.resetSniffers()
		r.docker("exec", "-d", "talks", "/app", "burst", "--stay", "--name", "talks", lab.SiteAddr2.String()+":7001")
		r.hears("talks", eth1, "tcp", "udp")
		for _, end := range []func(){r.stop, r.kill} {
			end()
			r.seenAs("web", eth1)
			others(r)
			r.hears("talks", eth1, "tcp", "udp")
			if got, err := r.exec("held", "get", siteIP); err == nil {
				t.Errorf("without the daemon the held one is seen as %s", got)
			}
			r.serve()
			whole.daemon = r.daemon
			r.decided("web", plan.StatePinned)
			r.decided("held", plan.StateBlocked)
			r.seenAs("web", eth1)
			r.hears("talks", eth1, "tcp", "udp")
		}
		if n := r.Site.Count(func(s lab.Seen) bool { return strings.HasPrefix(s.Detail, "talks attempt=") }); n != 1 {
			t.Errorf("%d sessions, want one that lasts", n)
		}
		if n := r.began(lab.SiteAddr2); n["eth0"]+n["eth2"] > 0 || n["eth1"] == 0 {
			t.Errorf("left by NIC: %v, want by eth1 only", n)
		}
		r.clean()
	})
	t.Run("the container is started anew", func(t *testing.T) {
		r := r.in(t)
		r.docker("restart", "web")
		r.eventually("its new cgroup to be pinned", func() error {
			got, err := r.exec("web", "get", siteIP)
			if err == nil && got != eth1 {
				err = fmt.Errorf("it is seen as %s", got)
			}
			return err
		})
		r.clean()
	})
	t.Run("removed", func(t *testing.T) {
		r := r.in(t)
		sets := r.cgroupSets()
		for _, id := range ids { // nft prints a cgroup as its path
			if !strings.Contains(sets, id) {
				t.Errorf("%s is in no set:\n%s", id, sets)
			}
		}
		r.docker("rm", "-f", "web", "held")
		r.eventually("nothing of them to be left", func() error {
			if sets := r.cgroupSets(); strings.Contains(sets, "elements") {
				return fmt.Errorf("%s", sets)
			}
			s, err := r.status()
			if err == nil && len(s.Endpoints)+len(s.Problems) > 0 {
				err = fmt.Errorf("endpoints %+v, problems %v", s.Endpoints, s.Problems)
			}
			return err
		})
		others(r)
		for _, bad := range []string{"msg=repaired", "code=" + string(model.CodeNoEndpoint)} {
			if strings.Contains(r.daemon.Log(), bad) {
				t.Errorf("the log has %s", bad)
			}
		}
		r.clean()
	})
	r.stop()
	r.serve()
	if rules := r.on("nft", "list", "table", "inet", "eipnet"); strings.Contains(rules, "cgroup") {
		t.Errorf("rules about cgroups are left:\n%s", rules)
	}
	r.clean()
}

// datagrams calls servers by UDP. One on 0.0.0.0 answers from the host's default
// address: where it was called by another one, by the pinned NIC and to no avail.
func (r *rig) datagrams(eth0, eth1 string) {
	r.t.Helper()
	r.onHost("bound", "eth1", "serve", "--addr="+r.Addr("eth1").String()+":8096")
	defer r.docker("rm", "-f", "bound")
	r.decided("bound", plan.StatePinned)
	for _, addr := range []string{eth0 + ":8090", eth1 + ":8096"} {
		r.eventually("an answer by UDP of "+addr, func() error { // it may not listen yet
			got, err := r.udpFromSite(addr)
			if err == nil && !strings.Contains(got, "hello") {
				err = fmt.Errorf("it said %q", got)
			}
			return err
		})
	}
	r.resetSniffers()
	if got, err := r.udpFromSite(eth1 + ":8090"); err == nil {
		r.t.Errorf("by UDP a server on 0.0.0.0 answered %q, against docs/programs.md", got)
	}
	r.onlyBy("eth1", lab.ProtoUDP, lab.SiteAddr)
}

// TestHostNetworkHybrid: where the host's cgroups are not unified, the label has
// no effect, and the problem says why.
func TestHostNetworkHybrid(t *testing.T) {
	r := up(t, lab.Config{}, "--nics", allNICs)
	if kind := strings.TrimSpace(r.on("stat", "-f", "-c", "%T", "/sys/fs/cgroup")); kind == "cgroup2fs" {
		t.Skip("this machine's cgroups are unified")
	}
	r.onHost("web", "eth1", "serve", "--addr=:8090")
	r.eventually("the problem to be told", func() error {
		s, err := r.status()
		if err == nil && (len(s.Endpoints) > 0 || !slices.ContainsFunc(s.Problems, func(p model.Problem) bool {
			return p.Code == model.CodeNoEndpoint && p.Subject == "web" && strings.Contains(p.Text, "no hierarchy of cgroups version 2")
		})) {
			err = fmt.Errorf("endpoints %+v, problems %v", s.Endpoints, s.Problems)
		}
		return err
	})
	r.seenAs("web", r.EIP("eth0").String())
	if rules := r.on("nft", "list", "table", "inet", "eipnet"); strings.Contains(rules, "cgroup") {
		t.Errorf("there are rules about cgroups:\n%s", rules)
	}
	r.clean()
}
