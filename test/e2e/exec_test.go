package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// onNIC runs a program to its end under eipnet exec.
func (r *rig) onNIC(args ...string) (out string, code int) {
	r.t.Helper()
	cmd := r.Host.Command(r.t.Context(), "eipnet", append([]string{"exec"}, args...)...)
	cmd.Env = append(cmd.Env, "FROM_CALLER=passed")
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = exit.ExitCode()
	case err != nil:
		r.t.Fatal(err)
	}
	return strings.TrimSpace(string(text)), code
}

// keeps starts a program under eipnet exec and waits until status shows it pinned.
func (r *rig) keeps(name string, args ...string) *lab.Process {
	r.t.Helper()
	p, err := r.Host.StartCmd(r.Host.Command(context.Background(), "eipnet", append([]string{"exec", "--name", name}, args...)...), name)
	if err != nil {
		r.t.Fatal(err)
	}
	r.eventually(name+" to be pinned", func() error {
		s, err := r.status()
		if err != nil {
			return err
		}
		for _, e := range s.Endpoints {
			if e.Container == name && e.State == plan.StatePinned {
				return nil
			}
		}
		return fmt.Errorf("its endpoints: %+v; its log: %s", s.Endpoints, p.Log())
	})
	return p
}

// gone waits until the host is as before, and no process of a program is left.
func (r *rig) gone(before string) {
	r.t.Helper()
	r.eventually("nothing to be left of the programs", func() error {
		now, err := r.HostState(r.t.Context())
		if err != nil {
			return err
		}
		if diff := cmp.Diff(before, now); diff != "" {
			return errors.New("(-before +now)\n" + diff)
		}
		if left, _ := r.Host.Run(r.t.Context(), "sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null | grep '^app \\|^eipnet exec'"); left != "" {
			return errors.New("processes: " + left)
		}
		return nil
	})
}

// TestExec: unchanged programs of the host on one NIC each.
func TestExec(t *testing.T) {
	r := up(t, lab.Config{}, "--collect-after", "5s", "--nics", "eth0,eth1")
	app, err := r.BuildApp(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Host.Install(app, "app"); err != nil {
		t.Fatal(err)
	}
	eth1 := r.EIP("eth1").String()
	before, err := r.HostState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.resetSniffers()

	t.Run("clients", func(t *testing.T) {
		r := r.in(t)
		for _, tt := range []struct {
			want string
			code int
			args []string
		}{
			{eth1, 0, []string{"--nic", "eth1", "--", "app", "get", siteIP}},
			{eth1, 0, []string{"--nic", r.Addr("eth1").String(), "app", "get", siteIP}},
			{r.EIP("eth0").String(), 0, []string{"--nic", r.NIC("eth0").MAC.String(), "app", "get", siteIP}},
			{"passed", 3, []string{"--nic", "eth1", "--", "sh", "-c", "echo $FROM_CALLER; exit 3"}},
			{"65534 100", 0, []string{"--nic", "eth1", "--user", "65534:100", "--", "sh", "-c", "echo $(id -u) $(id -g)"}},
			{"", 128 + 9, []string{"--nic", "eth1", "--", "sh", "-c", "kill -9 $$"}},
			{"not found", 127, []string{"--nic", "eth1", "--", "no-such-program"}},
			{"no such NIC on this host", 125, []string{"--nic", "eth7", "--", "true"}},
			{"which NIC?", 125, []string{"true"}},
			{"want [ADDRESS:]HOSTPORT:PORT", 125, []string{"--nic", "eth1", "-p", "8090", "--", "true"}},
			{"eth0 lo", 0, []string{"--nic", "eth1", "--", "sh", "-c", "ip -o -br link | cut -d@ -f1 | cut -d' ' -f1 | sort | xargs"}},
		} {
			if got, code := r.onNIC(tt.args...); !strings.Contains(got, tt.want) || code != tt.code {
				t.Errorf("eipnet exec %s: %q, exit code %d; want %q and %d", strings.Join(tt.args, " "), got, code, tt.want, tt.code)
			}
		}
		r.Site.Reset()
		for _, get := range [][]string{{"app", "get"}, {"curl", "-sS"}} { // curl asks by libc
			args := append([]string{"--nic", "eth1", "--"}, append(get, "http://"+lab.SiteName+"/ip")...)
			r.eventually(fmt.Sprintf("%v by name", get), func() error { // the query is one datagram
				got, code := r.onNIC(args...)
				if code == 0 && got != eth1 {
					t.Errorf("%v by name: %q", get, got)
				} else if code != 0 {
					return fmt.Errorf("%q, exit code %d", got, code)
				}
				return nil
			})
		}
		if r.Site.Count(func(s lab.Seen) bool { return s.Proto == "dns" }) == 0 {
			t.Error("no DNS query was seen: the check below shows nothing")
		}
		for _, s := range r.Site.Seen() {
			if s.Src.Addr().String() != eth1 {
				t.Errorf("the site saw %v", s)
			}
		}
		r.clean()
		r.gone(before)
	})
	t.Run("a terminal", func(t *testing.T) {
		r := r.in(t)
		out, err := r.Host.Run(t.Context(), "script", "-qec", "eipnet exec --nic eth1 -- sh -c 'test -t 0 && echo it has a terminal'", "/dev/null")
		if err != nil || !strings.Contains(out, "it has a terminal") {
			t.Errorf("printed %q: %v", out, err)
		}
		r.gone(before)
	})
	t.Run("a server", func(t *testing.T) {
		r := r.in(t)
		web := r.keeps("web", "--nic", "eth1", "-p", "8090:8080", "-p", "8090:8080/udp", "--", "app", "serve")
		r.answers(r.url("eth1", 8090), eth1)
		if got, err := r.udpFromSite(eth1 + ":8090"); err != nil || !strings.Contains(got, "hello") {
			t.Errorf("by UDP it answered %q: %v", got, err)
		}
		if out, code := r.onNIC("--nic", "eth1", "-p", "8090:80", "--", "true"); code != 125 || !strings.Contains(out, "already allocated") {
			t.Errorf("the same port again: %q, exit code %d", out, code)
		}
		if out, code := r.onNIC("--nic", "eth1", "--name", "web", "--", "true"); code != 125 || !strings.Contains(out, "in use") {
			t.Errorf("the same name again: %q, exit code %d", out, code)
		}
		if err := web.Stop(t.Context(), syscall.SIGTERM); err != nil || web.Err() != nil {
			t.Errorf("SIGTERM was not passed on: %v, %v", err, web.Err())
		}
		// Its port is free as soon as the command has ended.
		if out, code := r.onNIC("--nic", "eth1", "-p", "8090:80", "--", "true"); code != 0 {
			t.Errorf("the port is not free: %s", out)
		}
		r.clean()
		r.gone(before)
	})
	t.Run("joined by name, as by NetworkNamespacePath=", func(t *testing.T) {
		r := r.in(t)
		p := r.keeps("held", "--nic", "eth1", "--", "app", "sleep")
		r.eventually("the program to run", func() error {
			_, err := r.Host.Run(t.Context(), "sh", "-c", `for p in /proc/[0-9]*; do [ "$(tr '\0' ' ' < $p/cmdline)" = "app sleep " ] && exec ip netns attach held ${p#/proc/}; done; exit 1`)
			return err
		})
		if got := strings.TrimSpace(r.on("nsenter", "--net=/run/netns/held", "app", "get", siteIP)); got != eth1 {
			t.Errorf("in the namespace: %q", got)
		}
		if err := p.Stop(t.Context(), syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		r.on("ip", "netns", "delete", "held")
		r.clean()
		r.gone(before)
	})
	t.Run("says goodbye", func(t *testing.T) {
		r := r.in(t)
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			p := r.keeps("polite", "--nic", "eth1", "-p", "8094:8080", "--", "sh", "-c",
				"trap 'for i in 1 2 3; do app get "+siteIP+" || exit 4; done; exit 3' TERM INT; app serve & while :; do wait; done")
			r.answers(r.url("eth1", 8094), eth1)
			if err := p.Stop(t.Context(), sig); err != nil {
				t.Error(err)
			}
			if err := p.Err(); err == nil || !strings.Contains(err.Error(), "exit status 3") {
				t.Errorf("%v: it ended with %v and said:\n%s", sig, err, p.Log())
			}
			r.gone(before)
		}
		r.clean()
	})
	t.Run("forks and is killed", func(t *testing.T) {
		r := r.in(t)
		p := r.keeps("forks", "--nic", "eth1", "-p", "8091:8080", "--", "sh", "-c", "setsid app sleep & app sleep & app serve")
		r.answers(r.url("eth1", 8091), eth1)
		if err := p.Stop(t.Context(), syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		r.gone(before)
		if out, code := r.onNIC("--nic", "eth1", "--", "sh", "-c", "setsid app sleep & kill -9 $$"); code != 128+9 {
			t.Errorf("a program that was killed: %q, exit code %d", out, code)
		}
		r.gone(before)
	})
	t.Run("the daemon is started anew", func(t *testing.T) {
		r := r.in(t)
		p := r.keeps("stays", "--nic", "eth1", "-p", "8092:8080", "--", "app", "serve")
		short := r.keeps("dies meanwhile", "--nic", "eth1", "--", "app", "sleep")
		frozen := r.keeps("frozen", "--nic", "eth1", "--", "app", "sleep") // cannot take hold again
		if err := frozen.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		for _, end := range []func(){r.kill, r.stop} {
			end()
			r.answers(r.url("eth1", 8092), eth1)
			if err := short.Stop(t.Context(), syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			r.serve()
			r.eventually("what nobody holds to go, and what is held again to stay", func() error {
				s, err := r.status()
				if err != nil {
					return err
				}
				if len(s.Endpoints) != 1 || s.Endpoints[0].Container != "stays" || s.Endpoints[0].State != plan.StatePinned {
					return fmt.Errorf("there are %+v", s.Endpoints)
				}
				return nil
			})
		}
		if err := frozen.Stop(t.Context(), syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		r.answers(r.url("eth1", 8092), eth1)
		if err := p.Stop(t.Context(), syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		r.clean()
		r.gone(before)
	})
	t.Run("many at once", func(t *testing.T) {
		r := r.in(t)
		n := 10
		if soak() {
			n = 100
		}
		var wg sync.WaitGroup
		for i := range n {
			nic := fmt.Sprintf("eth%d", i%2)
			wg.Go(func() {
				if got, code := r.onNIC("--nic", nic, "-p", fmt.Sprintf("%d:80", 9000+i), "--", "app", "get", siteIP); got != r.EIP(nic).String() || code != 0 {
					t.Errorf("number %d on %s: %q, exit code %d", i, nic, got, code)
				}
			})
		}
		wg.Wait()
		r.clean()
		r.gone(before)
	})
}
