package e2e

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/eipnet/eipnet/internal/reconcile"
	"github.com/eipnet/eipnet/test/lab"
)

const dbusSocket = "/run/dbus/system_bus_socket"

// TestFirewalls: whatever ufw and firewalld do to the host's rules, pins and
// ports work again by themselves, and nothing leaves wrongly meanwhile. Of the
// bridge firewalld is told, unless its user has put it into a zone.
func TestFirewalls(t *testing.T) {
	r := prepare(t, lab.Config{Shape: lab.OneSubnet})
	r.on("mkdir", "-p", "/run/dbus")
	r.beside("dbus-daemon", "--system", "--nofork", "--nopidfile")
	r.eventually("D-Bus to be there", func() error {
		_, err := r.Host.Run(t.Context(), "test", "-S", dbusSocket)
		return err
	})
	firewalld := r.startFirewalld()
	// Docker makes its zone where firewalld is there before it.
	if err := r.RestartEngine(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.serve()
	r.createNetwork()
	r.run(t, "pinned", "--label", "eip.nic=eth1", "-p", "8090:8080")
	r.run(t, "free", "-p", "8091:8080")
	r.docker("exec", "-d", "pinned", "/app", "stream", lab.SiteAddr.String()+":7")

	sh := func(script string) func() { return func() { r.on("sh", "-ec", script) } }
	for _, step := range []struct {
		name    string
		act     func() // nil: nothing
		dropped bool   // what containers begin
		zone    string // of the bridge; empty: firewalld is not there
	}{
		{"firewalld was there before", nil, false, "docker"},
		{"firewall-cmd --reload", sh("firewall-cmd --reload"), false, "docker"},
		{"firewall-cmd --complete-reload", sh("firewall-cmd --complete-reload"), false, "docker"},
		{"its user puts the bridge into zone drop", sh("firewall-cmd --zone=drop --change-interface=" + bridge), true, "drop"},
		{"its user puts the bridge into zone trusted", sh("firewall-cmd --zone=trusted --change-interface=" + bridge), false, "trusted"},
		{"eipnet is started anew", func() { r.stop(); r.serve() }, false, "trusted"},
		{"firewalld stops", func() {
			if err := firewalld.Stop(t.Context(), syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}, false, ""},
		{"ufw enable", sh("ufw --force enable"), false, ""},
		{"ufw reload", sh("ufw reload"), false, ""},
		// It makes the chain where it is not: Docker 20.10 lets firewalld's end take it away.
		{"a RETURN in DOCKER-USER for all sources like ours, as the recipe for ufw has", sh("iptables -N DOCKER-USER 2>/dev/null || true; iptables -I DOCKER-USER -s 172.16.0.0/12 -j RETURN"), false, ""},
		{"ufw disable", sh("iptables -D DOCKER-USER -s 172.16.0.0/12 -j RETURN; ufw disable"), false, ""},
		{"ufw enable, MANAGE_BUILTINS=yes", sh("sed -i s/^MANAGE_BUILTINS=.*/MANAGE_BUILTINS=yes/ /etc/default/ufw; ufw --force enable"), false, ""},
		{"ufw reload, MANAGE_BUILTINS=yes", sh("ufw reload"), false, ""},
		{"ufw disable, MANAGE_BUILTINS=yes", sh("ufw disable"), false, ""},
		{"firewalld starts", func() { firewalld = r.startFirewalld() }, false, "docker"},
	} {
		t.Run(step.name, func(t *testing.T) {
			r.resetSniffers()
			if step.act != nil {
				step.act()
			}
			r.within(reconcile.MaxInterval/3, "everything to work again", func() error {
				if err := r.inZone(step.zone); err != nil {
					return err
				}
				return r.worksBehind(t, step.dropped)
			})
			r.clean()
		})
	}
	r.docker("rm", "-f", "pinned", "free")
	r.docker("network", "rm", network)
	r.eventually("firewalld to forget the bridge", func() error {
		if out := r.on("firewall-cmd", "--list-interfaces", "--zone=docker"); strings.Contains(out, bridge) {
			return fmt.Errorf("zone docker has %s", out)
		}
		return nil
	})
}

// startFirewalld starts it and waits until it answers.
func (r *rig) startFirewalld() *lab.Process {
	r.t.Helper()
	p := r.beside("firewalld", "--nofork", "--nopid")
	r.eventually("firewalld to run", func() error {
		_, err := r.Host.Run(r.t.Context(), "firewall-cmd", "--state")
		return err
	})
	return p
}

// beside starts a program on the host that runs until the lab ends.
func (r *rig) beside(name string, args ...string) *lab.Process {
	r.t.Helper()
	p, err := r.Host.Start(name, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// inZone compares the zone that firewalld has the bridge in; empty: there is no firewalld.
func (r *rig) inZone(want string) error {
	if want == "" {
		if _, err := r.Host.Run(r.t.Context(), "nft", "list", "table", "inet", "firewalld"); err == nil {
			return errors.New("firewalld's table is there")
		}
		return nil
	}
	got, err := r.Host.Run(r.t.Context(), "firewall-cmd", "--get-zone-of-interface="+bridge)
	if err == nil && strings.TrimSpace(got) != want {
		err = fmt.Errorf("the bridge is in zone %q, want %q", strings.TrimSpace(got), want)
	}
	return err
}

// worksBehind asks for what both containers do. firewalld's zone drop answers
// nothing, so what containers begin ends with a time-out.
func (r *rig) worksBehind(t *testing.T, dropped bool) error {
	t.Helper()
	for name, port := range map[string]int{"pinned": 8090, "free": 8091} {
		got, err := r.SiteGet(t.Context(), r.url("eth1", port)+"hello")
		if err == nil && got != "hello" {
			err = errors.New("it answered " + got)
		}
		if err != nil {
			return fmt.Errorf("the port of %s: %w", name, err)
		}
	}
	for name, nic := range map[string]string{"pinned": "eth1", "free": "eth0"} {
		got, err := r.exec(name, "get", siteIP)
		switch want := r.EIP(nic).String(); {
		case dropped && err == nil:
			return fmt.Errorf("%s left as %s, and should be dropped", name, got)
		case dropped && !late(err):
			return fmt.Errorf("%s: want a time-out: %w", name, err)
		case !dropped && err != nil:
			return fmt.Errorf("%s does not leave: %w", name, err)
		case !dropped && got != want:
			return fmt.Errorf("%s left as %s, want %s", name, got, want)
		}
	}
	return nil
}
