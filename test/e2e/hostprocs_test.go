package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// hostProcess is one of the article's: a bridge with an address, and a program
// that listens on it and connects from it.
type hostProcess struct {
	name, nic, bridge string
	addr              netip.Addr
}

func (p hostProcess) args() []string {
	return []string{"serve", "--addr=" + p.addr.String() + ":8090", "--from", p.addr.String()}
}

var hostProcesses = []hostProcess{
	{"web0", "eth0", "br-eip1", netip.MustParseAddr("172.19.0.100")},
	{"web1", "eth1", "br-eip2", netip.MustParseAddr("172.19.0.101")},
}

// installApp puts the lab's program on the host.
func (r *rig) installApp() {
	r.t.Helper()
	app, err := r.BuildApp(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.Host.Install(app, "app"); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) addHost(p hostProcess) {
	r.t.Helper()
	r.on("eipnet", "host", "add", p.name, "--nic", p.nic, "--address", p.addr.String(), "--bridge", p.bridge, "-p", "8090:8090", "-p", "8090:8090/udp", "-p", "8091:8091")
}

// works checks that each program is reached by its EIP, and that what it, and
// whatever else uses its address, sends leaves by its NIC.
func (r *rig) works() {
	r.t.Helper()
	for _, p := range hostProcesses {
		eip := r.EIP(p.nic).String()
		r.answers(r.url(p.nic, 8090), eip)
		r.eventually(p.name+" to answer by UDP", func() error {
			got, err := r.udpFromSite(eip + ":8090")
			if err == nil && !strings.HasPrefix(got, lab.SiteAddr.String()) {
				err = fmt.Errorf("it was called by %s", got)
			}
			return err
		})
		r.eventually(fmt.Sprintf("UDP from %v to be answered", p.addr), func() error {
			got, err := r.fromHost(r.t.Context(), p.addr, "udp", echoUDP)
			if !late(err) && (err != nil || !strings.HasPrefix(got, eip+":")) {
				r.t.Fatalf("UDP from %v: seen as %q, %v", p.addr, got, err)
			}
			return err
		})
	}
}

// fromHost sends something from an address of the host, and returns what the
// site's echo says of it.
func (r *rig) fromHost(ctx context.Context, from netip.Addr, network, to string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := r.HostDial(ctx, from, network, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("x\n")); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// silent checks that nothing sent from the programs' addresses is seen by the site.
func (r *rig) silent(processes ...hostProcess) {
	r.t.Helper()
	r.Site.Reset()
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range processes {
		wg.Go(func() {
			if got, err := r.HostGet(ctx, p.addr, siteIP); err == nil {
				r.t.Errorf("TCP from %v was answered: %s", p.addr, got)
			}
		})
		wg.Go(func() {
			if got, err := r.fromHost(ctx, p.addr, "udp", echoUDP); err == nil {
				r.t.Errorf("UDP from %v was answered: %s", p.addr, got)
			}
		})
	}
	wg.Wait()
	if seen := r.Site.Seen(); len(seen) > 0 {
		r.t.Errorf("the site saw %v", seen)
	}
}

// TestHostProcesses: the article's third recipe, and its flaw.
func TestHostProcesses(t *testing.T) {
	moved := netip.MustParsePrefix("172.31.0.15/20")
	r := up(t, lab.Config{Shape: lab.OneSubnet, RPFilter: "2", ExtraAddrs: map[string][]netip.Prefix{"eth1": {moved}}})
	r.on("ip", "addr", "del", moved.String(), "dev", "eth1")
	r.installApp()
	before, err := r.HostState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range hostProcesses {
		r.addHost(p)
	}
	// Before anything listens there, nothing is to go anywhere else.
	if _, err := r.SiteGet(t.Context(), r.url("eth1", 8090)); err == nil {
		t.Error("something answers though no program runs")
	}
	var programs []*lab.Process
	for _, p := range hostProcesses {
		cmd := r.Host.Command(context.Background(), "app", p.args()...)
		program, err := r.Host.StartCmd(cmd, p.name)
		if err != nil {
			t.Fatal(err)
		}
		programs = append(programs, program)
	}
	r.resetSniffers()

	t.Run("in and out", func(t *testing.T) {
		r := r.in(t)
		r.works()
		// A session of an administrator, and a program that chooses no address.
		if got, err := r.HostGet(t.Context(), netip.Addr{}, siteIP); err != nil || strings.TrimSpace(got) != r.EIP("eth0").String() {
			t.Errorf("a program without an address: seen as %q, %v", got, err)
		}
		// Of the host itself: by the address, by the published port, from one to the other.
		for _, from := range []netip.Addr{{}, hostProcesses[0].addr, hostProcesses[1].addr} {
			for _, to := range []string{"172.19.0.101:8090", r.Addr("eth1").String() + ":8090", "172.19.0.100:8090"} {
				if got, err := r.HostGet(t.Context(), from, "http://"+to+"/hello"); err != nil || got != "hello" {
					t.Errorf("from %v to %s: %q, %v", from, to, got, err)
				}
			}
		}
		r.clean()
	})
	t.Run("shown", func(t *testing.T) {
		r := r.in(t)
		s := r.well()
		if len(s.Endpoints) != 2 || s.Endpoints[1].Container != "web1" || s.Endpoints[1].State != plan.StatePinned ||
			!cmp.Equal(s.Endpoints[1].Ports, []string{"172.31.0.14:8090->8090/tcp", "172.31.0.14:8091->8091/tcp", "172.31.0.14:8090->8090/udp"}) {
			t.Errorf("status: %+v", s.Endpoints)
		}
		list := r.on("eipnet", "host", "ls")
		for _, p := range hostProcesses {
			if !strings.Contains(list, p.name+"   "+p.bridge+"   "+p.addr.String()+"   pinned   "+p.nic) {
				t.Errorf("%s is not in the list:\n%s", p.name, list)
			}
		}
		var lines []struct {
			Name  string
			State plan.State
		}
		if err := json.Unmarshal([]byte(r.on("eipnet", "host", "ls", "--json")), &lines); err != nil || len(lines) != 2 || lines[1].Name != "web1" || lines[1].State != plan.StatePinned {
			t.Errorf("as JSON: %+v, %v", lines, err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		r := r.in(t)
		for _, tt := range []struct {
			want string
			args []string
		}{
			{"no such NIC", []string{"x", "--nic", "eth7", "--address", "172.19.0.102"}},
			{"want an address that nobody has", []string{"x", "--nic", "eth1", "--address", "172.31.0.77"}},
			{"web1 has address", []string{"x", "--nic", "eth1", "--address", "172.19.0.101"}},
			{"each has its own", []string{"x", "--nic", "eth1", "--address", "172.19.0.102", "--bridge", "br-eip2"}},
			{"says something else", []string{"web1", "--nic", "eth1", "--address", "172.19.0.102"}},
			{"in use by a link", []string{"x", "--nic", "eth1", "--address", "172.19.0.102", "--bridge", "eth2"}},
			{"Docker's bridge docker0", []string{"x", "--nic", "eth1", "--address", "172.17.0.9"}},
			{"already allocated", []string{"x", "--nic", "eth1", "--address", "172.19.0.102", "-p", "8090:80"}},
		} {
			if out, err := r.Host.Run(t.Context(), "eipnet", append([]string{"host", "add"}, tt.args...)...); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("host add %s: %q, %v, want it to say %q", strings.Join(tt.args, " "), out, err, tt.want)
			}
		}
		if out, err := r.Docker(t.Context(), "network", "create", "-d", "eipnet", "--subnet", "172.19.0.0/24", "over"); err == nil || !strings.Contains(err.Error(), "web0") {
			t.Errorf("a network over the address: %q, %v", out, err)
		}
		r.addHost(hostProcesses[1]) // once more is no change
		r.works()
	})
	t.Run("moved and removed", func(t *testing.T) {
		r := r.in(t)
		r.on("eipnet", "rebind", "web1", "eth2")
		r.answers(r.url("eth2", 8090), r.EIP("eth2").String())
		r.on("eipnet", "rebind", "web1", "--clear")
		r.works()
		// Were eth1 nobody's afterwards, the host itself would refuse what is left of the session by eth0.
		r.on("eipnet", "host", "add", "stay", "--nic", "eth1", "--address", "172.19.0.102")
		session := openSession(t, "into web1", r.Site, fmt.Sprintf("%v:8091", r.EIP("eth1")))
		session.goesOn(t)
		r.on("eipnet", "host", "rm", "web0", "web1")
		if _, err := r.Host.Run(t.Context(), "eipnet", "host", "rm", "web1"); err == nil || !strings.Contains(err.Error(), "no such host entry") {
			t.Errorf("removing it again: %v", err)
		}
		for _, p := range programs {
			if err := p.Stop(t.Context(), syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
		r.clean()
		session.conn.Close()
		r.on("eipnet", "host", "rm", "stay")
		r.gone(before)
	})
	for _, p := range hostProcesses {
		r.addHost(p)
		r.background(p.name, p.args()...)
	}
	r.resetSniffers()
	t.Run("heals", func(t *testing.T) {
		r := r.in(t)
		ours := func() string {
			return r.on("sh", "-c", "ip rule | sort; ip -br addr | sort; ip route show table all proto 201; nft -s list table inet eipnet")
		}
		mends := func(line string) {
			t.Helper()
			whole := ours()
			r.on("sh", "-c", line)
			r.eventually("what is missing to be there again after: "+line, func() error {
				if diff := cmp.Diff(whole, ours()); diff != "" {
					return errors.New("(-before +now)\n" + diff)
				}
				return nil
			})
			r.works()
		}
		for _, line := range []string{
			"nft flush ruleset", "ip rule del pref 5190", "ip rule del pref 5100 iif lo", "ip addr del 172.19.0.101/32 dev br-eip2",
			"ip link set br-eip2 down", "ip link del br-eip2", "ip link del eipnull0",
		} {
			mends(line)
		}
		mends(deleteRulesScript)
		r.clean()
	})
	t.Run("without the daemon", func(t *testing.T) {
		all := r
		r := r.in(t)
		t.Cleanup(func() { all.daemon = r.daemon })
		r.kill()
		r.works()
		r.on("nft", "flush", "ruleset")
		r.silent(hostProcesses...)
		r.clean()
		r.serve()
		r.works()
		r.kill()
		r.on("sh", "-c", deleteRulesScript)
		r.silent(hostProcesses[1]) // eth0 is where the host's own routes lead
		if _, err := r.SiteGet(t.Context(), r.url("eth1", 8090)); err == nil {
			t.Error("web1 is answered though its rules are gone")
		}
		r.clean()
		r.serve()
		r.works()
		r.clean()
	})
	t.Run("the NIC's address changes", func(t *testing.T) {
		r := r.in(t)
		p := hostProcesses[1]
		leaves := func(want string) {
			t.Helper()
			r.eventually("what is sent from "+p.addr.String()+" to leave as "+want, func() error {
				got, err := r.HostGet(t.Context(), netip.Addr{}, "http://"+p.addr.String()+":8090/") // by the program itself
				if err == nil && strings.TrimSpace(got) != want {
					err = fmt.Errorf("it left as %s", got)
				}
				return err
			})
		}
		r.on("ip", "addr", "del", r.NIC("eth1").Addr.String(), "dev", "eth1")
		r.on("ip", "addr", "add", moved.String(), "dev", "eth1")
		leaves(moved.Addr().String())
		r.answers("http://"+moved.Addr().String()+":8090/", moved.Addr().String())
		r.on("ip", "addr", "del", moved.String(), "dev", "eth1")
		r.eventually("web1 to be held", func() error {
			s, err := r.status()
			if err == nil && s.Endpoints[1].State != plan.StateBlocked {
				err = fmt.Errorf("it is %s", s.Endpoints[1].State)
			}
			return err
		})
		r.silent(p)
		r.on("ip", "addr", "add", r.NIC("eth1").Addr.String(), "dev", "eth1")
		leaves(r.EIP("eth1").String())
		r.clean()
	})
	t.Run("unchanged, under exec", func(t *testing.T) {
		r := r.in(t)
		var kept []*lab.Process
		for _, p := range hostProcesses {
			kept = append(kept, r.keeps("exec-"+p.nic, "--nic", p.nic, "-p", "8095:8090", "--", "app", "serve", "--addr=:8090"))
			r.answers(r.url(p.nic, 8095), r.EIP(p.nic).String())
		}
		r.on("nft", "flush", "ruleset")
		r.on("sh", "-c", deleteRulesScript)
		for _, p := range hostProcesses {
			r.answers(r.url(p.nic, 8095), r.EIP(p.nic).String())
		}
		// One that joins web1 takes its ports over. It asks by name, which web1 does not.
		kept = append(kept, r.keeps("joined", "--as", "web1", "--", "app", "serve", "--addr=:8090", "--echo", "http://"+lab.SiteName+"/ip"))
		r.Site.Reset()
		r.eventually("the program that joined web1 to be reached by its port", func() error {
			got, err := r.SiteGet(t.Context(), r.url("eth1", 8090))
			if err == nil && strings.TrimSpace(got) != r.EIP("eth1").String() {
				err = fmt.Errorf("it answered %q", got)
			}
			if err == nil && r.Site.Count(func(s lab.Seen) bool { return s.Proto == "dns" && s.Src.Addr() == r.EIP("eth1") }) == 0 {
				err = errors.New("no name was asked for: web1 itself has answered")
			}
			return err
		})
		if out, code := r.onNIC("--as", "web1", "--", "true"); code != 125 || !strings.Contains(out, "joined has joined host entry web1 already") {
			t.Errorf("a second one: %q, exit code %d", out, code)
		}
		for _, p := range kept {
			if err := p.Stop(t.Context(), syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
		r.works()
		r.clean()
	})
	t.Run("declared by files", func(t *testing.T) {
		all := r
		r := r.in(t)
		t.Cleanup(func() { all.daemon = r.daemon })
		declare := func(name, text string) {
			t.Helper()
			if err := r.Host.WriteFile("/etc/eipnet/host.d/"+name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		expect := func(what string, ok func(e []api.Endpoint, problems []model.Problem) bool) {
			t.Helper()
			r.eventually(what, func() error {
				s, err := r.status()
				if err == nil && !ok(s.Endpoints, s.Problems) {
					err = fmt.Errorf("endpoints %+v, problems %v", s.Endpoints, s.Problems)
				}
				return err
			})
		}
		named := func(list []api.Endpoint, name string) api.Endpoint {
			i := slices.IndexFunc(list, func(e api.Endpoint) bool { return e.Container == name })
			if i < 0 {
				return api.Endpoint{}
			}
			return list[i]
		}
		declare("mail.json", `{"nic": "eth2", "address": "172.19.0.110", "publish": ["2525:25"]}`)
		expect("mail to be pinned", func(e []api.Endpoint, p []model.Problem) bool {
			return named(e, "mail").NIC == "eth2" && len(named(e, "mail").Ports) == 1 && len(p) == 0
		})
		if got, err := r.HostGet(t.Context(), netip.MustParseAddr("172.19.0.110"), siteIP); err != nil || strings.TrimSpace(got) != r.EIP("eth2").String() {
			t.Errorf("from mail's address: %q, %v", got, err)
		}
		if _, err := r.Host.Run(t.Context(), "eipnet", "host", "rm", "mail"); err == nil || !strings.Contains(err.Error(), "remove that file") {
			t.Errorf("removed by command: %v", err)
		}
		declare("mail.json", `{"nic": "eth1", "address": "172.19.0.110"`)
		expect("a problem with the file, and mail to stay", func(e []api.Endpoint, p []model.Problem) bool {
			return named(e, "mail").NIC == "eth2" && len(p) == 1 && p[0].Code == model.CodeBadFile
		})
		declare("mail.json", `{"nic": "eth1", "address": "172.19.0.111"}`)
		expect("mail to have moved", func(e []api.Endpoint, p []model.Problem) bool {
			m := named(e, "mail")
			return m.NIC == "eth1" && len(m.Addresses) == 1 && m.Addresses[0].String() == "172.19.0.111" && len(m.Ports) == 0 && len(p) == 0
		})
		r.kill()
		r.serve()
		expect("mail to be there after a restart", func(e []api.Endpoint, _ []model.Problem) bool { return named(e, "mail").NIC == "eth1" })
		r.on("rm", "/etc/eipnet/host.d/mail.json")
		expect("mail to go with its file", func(e []api.Endpoint, _ []model.Problem) bool { return len(e) == 2 })
		r.clean()
	})
	t.Run("cleanup", func(t *testing.T) {
		r := r.in(t)
		r.stop()
		if said := r.on("eipnet", "cleanup"); !strings.Contains(said, "br-eip1") {
			t.Errorf("cleanup said nothing of the bridge: %s", said)
		}
		if left := r.on("sh", "-c", "ip -o link; ip addr; ip rule; ip route show table all; nft list tables"); strings.Contains(left, "br-eip") || strings.Contains(left, "172.19.0.1") || strings.Contains(left, "eipnet") {
			t.Errorf("left:\n%s", left)
		}
	})
}
