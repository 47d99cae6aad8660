// Package e2e tests eipnet as its users have it: the binary, a real Docker
// Engine, and a cloud that drops what leaves by the wrong NIC.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/test/lab"
)

const (
	subnet   = "172.19.0.0/16"
	bridge   = "eip_bridge"
	network  = "eip_bridge" // the article gives network and bridge one name
	patience = 30 * time.Second
)

func TestMain(m *testing.M) {
	lab.Init()
	os.Exit(m.Run())
}

// engine is the Docker Engine that this run tests with.
func engine() string {
	if e := os.Getenv("EIPNET_ENGINE"); e != "" {
		return e
	}
	return "28.5"
}

// soak says that tests run at full size: in make soak, not in make test.
func soak() bool { return os.Getenv("EIPNET_SOAK") != "" }

// rig is a lab with eipnet on its host.
type rig struct {
	*lab.Lab
	t      *testing.T
	daemon *lab.Process
	args   []string
}

// up builds a lab with an engine, the test image, and a running eipnet.
func up(t *testing.T, cfg lab.Config, args ...string) *rig {
	t.Helper()
	r := prepare(t, cfg, args...)
	r.serve()
	return r
}

// prepare is up without the running eipnet.
func prepare(t *testing.T, cfg lab.Config, args ...string) *rig {
	t.Helper()
	if testing.Short() {
		t.Skip("needs an engine")
	}
	cfg.Engine = engine()
	r := &rig{Lab: lab.Start(t, cfg), t: t, args: args}
	if err := r.BuildImage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Host.Install(binary(t), "eipnet"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && r.daemon != nil {
			t.Logf("---- eipnet's log\n%s", r.daemon.Log())
			if out, err := r.Host.Run(context.Background(), "eipnet", "status"); out != "" {
				t.Logf("---- eipnet status (%v)\n%s", err, out)
			}
		}
	})
	return r
}

// binary returns the eipnet to test: $EIPNET_BIN, or a fresh build.
func binary(t *testing.T) string {
	t.Helper()
	if bin := os.Getenv("EIPNET_BIN"); bin != "" {
		return bin
	}
	bin := filepath.Join(t.TempDir(), "eipnet")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "github.com/eipnet/eipnet/cmd/eipnet")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building eipnet: %v\n%s", err, out)
	}
	return bin
}

// stop ends the daemon as systemd would.
func (r *rig) stop() {
	r.t.Helper()
	if err := r.daemon.Stop(r.t.Context(), syscall.SIGTERM); err != nil {
		r.t.Fatal(err)
	}
}

// spawn starts the daemon.
func (r *rig) spawn() {
	r.t.Helper()
	p, err := r.launch()
	if err != nil {
		r.t.Fatal(err)
	}
	r.daemon = p
}

// launch starts the daemon from any goroutine; program is how, if not by its name.
func (r *rig) launch(program ...string) (*lab.Process, error) {
	args := slices.Concat(program, []string{"serve", "--log-level", "debug"})
	if len(program) == 0 {
		args = append([]string{"eipnet"}, args...)
	}
	for _, nic := range []string{"eth0", "eth1", "eth2"} {
		args = append(args, "--eip", fmt.Sprintf("%v=%v", r.EIP(nic), r.Addr(nic)))
	}
	return r.Host.Start(args[0], append(args[1:], r.args...)...)
}

// serve starts the daemon and waits until it answers.
func (r *rig) serve() {
	r.t.Helper()
	r.spawn()
	r.ready()
}

// ready waits until the daemon answers, and a pass has seen Docker.
func (r *rig) ready() {
	r.t.Helper()
	p := r.daemon
	r.eventually("the daemon to answer and to see Docker", func() error {
		select {
		case <-p.Done():
			r.t.Fatalf("eipnet ended: %v\n%s", p.Err(), p.Log())
		default:
		}
		return r.seesDocker()
	})
}

// seesDocker is nil when a pass has seen what Docker told.
func (r *rig) seesDocker() error {
	s, err := r.status()
	away := slices.ContainsFunc(s.Problems, func(p model.Problem) bool { return p.Code == model.CodeDockerAway })
	if err == nil && (s.Docker == "" || away) {
		err = fmt.Errorf("it does not see Docker: %v", s.Problems)
	}
	return err
}

// well waits until status has no problems: those of a pass are known a moment after what it did.
func (r *rig) well() api.Status {
	r.t.Helper()
	return r.noProblems(r.status)
}

func (r *rig) noProblems(status func() (api.Status, error)) (s api.Status) {
	r.t.Helper()
	r.eventually("no problems", func() (err error) {
		if s, err = status(); err == nil && len(s.Problems) > 0 {
			err = fmt.Errorf("problems: %v", s.Problems)
		}
		return err
	})
	return s
}

// kill ends the daemon as a crash would.
func (r *rig) kill() {
	r.t.Helper()
	if err := r.daemon.Stop(r.t.Context(), syscall.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) status() (api.Status, error) {
	var s api.Status
	out, err := r.Host.Run(r.t.Context(), "eipnet", "status", "--json")
	if out == "" {
		return s, err
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return s, fmt.Errorf("reading eipnet status: %w", err)
	}
	return s, nil
}

// eventually asks until there is no error, or fails the test with the last one.
// It asks less and less often, as most questions start a program.
func (r *rig) eventually(what string, fn func() error) {
	r.t.Helper()
	r.within(patience, what, fn)
}

// within is eventually with a patience of one's own.
func (r *rig) within(patience time.Duration, what string, fn func() error) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 320*time.Millisecond) {
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("waiting for %s: %v", what, err)
		}
		select {
		case <-r.t.Context().Done():
			r.t.Fatal(r.t.Context().Err())
		case <-time.After(pause):
		}
	}
}

// docker runs a docker command that has to succeed.
func (r *rig) docker(args ...string) string {
	r.t.Helper()
	out, err := r.Docker(r.t.Context(), args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// refused runs a docker command that has to fail, and returns what it said. One
// that is accepted may run on: then it is ended.
func (r *rig) refused(args ...string) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := r.Docker(ctx, args...)
	if err == nil || ctx.Err() != nil {
		r.t.Fatalf("docker %s was accepted: %s", strings.Join(args, " "), out)
	}
	return err.Error()
}

// on runs a command on the host that has to succeed.
func (r *rig) on(name string, args ...string) string {
	r.t.Helper()
	out, err := r.Host.Run(r.t.Context(), name, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// createNetwork makes the article's network.
func (r *rig) createNetwork(options ...string) {
	r.t.Helper()
	args := []string{"network", "create", "-d", "eipnet", "--subnet", subnet, "-o", "com.docker.network.bridge.name=" + bridge}
	r.docker(append(append(args, options...), network)...)
}

// letThrough waits for the network's accepts, which come a moment after it, and
// for them to be where they stay: Docker writes the same chains at that moment.
func (r *rig) letThrough() {
	r.t.Helper()
	r.eventually("the network to be let through", func() error {
		for _, tool := range []string{"iptables", "ip6tables"} {
			all, forward := r.on(tool, "-S"), strings.TrimSpace(r.on(tool, "-S", "FORWARD"))
			refuses := !strings.HasPrefix(forward, "-P FORWARD ACCEPT")
			if (refuses || strings.Contains(all, "-N DOCKER-USER\n")) && !strings.Contains(all, "-A EIPNET-FORWARD -i "+bridge+" ") {
				return fmt.Errorf("%s: %s", tool, all)
			}
			if refuses && !strings.HasSuffix(forward, " -j EIPNET-FORWARD") {
				return fmt.Errorf("%s: %s", tool, forward)
			}
		}
		return nil
	})
}

// run starts a container of the test image on the network and removes it with the (sub)test.
func (r *rig) run(t *testing.T, name string, args ...string) {
	t.Helper()
	all := []string{"run", "-d", "--name", name, "--network", network}
	r.docker(append(append(all, args...), lab.Image)...)
	t.Cleanup(func() {
		if _, err := r.Docker(context.Background(), "rm", "-f", name); err != nil {
			t.Error(err)
		}
	})
}

// app runs the test image's client in a container of its own, or in a running one.
func (r *rig) exec(container string, args ...string) (string, error) {
	out, err := r.Docker(r.t.Context(), append([]string{"exec", container, "/app"}, args...)...)
	return strings.TrimSpace(out), err
}

// answers waits until the URL answers from the site, and checks what it says.
func (r *rig) answers(url, want string) {
	r.t.Helper()
	r.eventually(url+" to answer "+want, func() error {
		got, err := r.SiteGet(r.t.Context(), url)
		if err == nil && strings.TrimSpace(got) != want {
			err = fmt.Errorf("it answered %q", got)
		}
		return err
	})
}

func (r *rig) url(nic string, port int) string { return fmt.Sprintf("http://%v:%d/", r.EIP(nic), port) }

// clean fails the test if any NIC emitted a packet with a foreign source.
func (r *rig) clean() {
	r.t.Helper()
	if err := r.Settle(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	foreign, err := r.Foreign(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range foreign {
		r.t.Errorf("foreign packet: %v", f)
	}
}

// allNICs is what --nics says where an address that nobody has any more may still
// be answered for: with no pin left a NIC would be nobody's, and the host would
// answer what comes by it, late, by eth0. That foreign packet would be the test's own.
const allNICs = "eth0,eth1,eth2"

// onlyBy fails unless packets of the protocol to the address left by that NIC,
// and by no other. Of TCP those count that open a connection: the end of an
// earlier one may come late.
func (r *rig) onlyBy(nic string, proto uint8, dst netip.Addr) {
	r.t.Helper()
	if err := r.Settle(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	for _, n := range r.NICs() {
		seen := r.Sniffer(n.Name).Seen(func(p lab.Packet) bool {
			return lab.To(proto, dst)(p) && (proto != lab.ProtoTCP || p.Flags&lab.FlagSYN != 0)
		})
		switch {
		case n.Name == nic && seen == 0:
			r.t.Errorf("nothing of protocol %d to %v left by %s", proto, dst, nic)
		case n.Name != nic && seen > 0:
			r.t.Errorf("%d packets of protocol %d to %v left by %s, want only by %s", seen, proto, dst, n.Name, nic)
		}
	}
}

// resetSniffers forgets what was seen so far, the site's part, too. Before that
// it waits until the host asks for no neighbour on a NIC: what was sent by the
// wrong one waits there for an answer, and the question, with the foreign
// address, is repeated for three seconds.
func (r *rig) resetSniffers() {
	r.t.Helper()
	for giveUp := time.Now().Add(answerTime); time.Now().Before(giveUp) && r.asking(); {
		<-time.After(50 * time.Millisecond)
	}
	if err := r.ResetSniffers(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.Site.Reset()
}

// asking says that the host waits for a neighbour's answer on a NIC.
func (r *rig) asking() bool {
	r.t.Helper()
	out := r.on("ip", "neigh", "show", "nud", "incomplete")
	return slices.ContainsFunc(r.NICs(), func(n lab.NIC) bool { return strings.Contains(out, " dev "+n.Name+" ") })
}

// udpFromSite sends a datagram from the site and returns the answer.
func (r *rig) udpFromSite(addr string) (string, error) {
	c, err := r.SiteDial(r.t.Context(), "udp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}
