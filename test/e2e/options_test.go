package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// TestPinOptions: what else can be said of a pin, on networks of both kinds.
func TestPinOptions(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.ThreeSubnets})
	r.createNetwork()
	t.Run("except", r.exceptOfOne)
	t.Run("shared", r.sharedPin)
	t.Run("image", r.labelsOfImage)
	t.Run("ceiling", r.ceilingOfStock)
	t.Run("fallback", r.fallbackHost)
	t.Run("endpoint option", r.endpointOption)
	t.Run("link-local", r.linkLocalSwitch) // it restarts the daemon
}

// saysStatus checks that eipnet status, as a person sees it, has this line.
func (r *rig) saysStatus(t *testing.T, want string) {
	t.Helper()
	out, err := r.Host.Run(t.Context(), "eipnet", "status")
	if !strings.Contains(out, want) {
		t.Errorf("eipnet status does not say %q: %v\n%s", want, err, out)
	}
}

// exceptOfOne: eip.except lets its container alone reach a destination by the
// host's routing.
func (r *rig) exceptOfOne(t *testing.T) {
	for _, on := range []string{network, "bridge"} {
		r.start(t, "except-"+on, "--network", on, "--label", "eip.nic=eth1", "--label", "eip.except="+lab.SiteAddr.String())
		r.start(t, "pinned-"+on, "--network", on, "--label", "eip.nic=eth1")
		r.leaves(t, "except-"+on, r.EIP("eth0").String())
		r.leaves(t, "pinned-"+on, r.EIP("eth1").String())
		ip := r.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "except-"+on)
		r.saysStatus(t, fmt.Sprintf("Destinations of except-%s (%s) that do, too: %v/32\n", on, ip, lab.SiteAddr))
	}
	r.clean()
}

// sharedPin: a container that shares another one's network shares its pin.
func (r *rig) sharedPin(t *testing.T) {
	for _, on := range []string{network, "bridge"} {
		r.start(t, "of-"+on, "--network", on, "--label", "eip.nic=eth1")
		r.docker("run", "-d", "--name", "shares-"+on, "--network", "container:of-"+on, lab.Image, "sleep")
		t.Cleanup(func() { r.docker("rm", "-f", "shares-"+on) })
		r.resetSniffers()
		r.leaves(t, "shares-"+on, r.EIP("eth1").String())
		r.onlyBy("eth1", lab.ProtoTCP, lab.SiteAddr)
	}
	r.clean()
}

// labelsOfImage are ignored, and said to be, on networks of both kinds.
func (r *rig) labelsOfImage(t *testing.T) {
	const evil = "eipnet/evil:latest"
	if err := r.BuildImageAs(t.Context(), evil, "LABEL eip.nic=eth2", "LABEL eip.except=0.0.0.0/0"); err != nil {
		t.Fatal(err)
	}
	for _, on := range []string{network, "bridge"} {
		name := "evil-" + on
		r.docker("run", "-d", "--name", name, "--network", on, "--label", "eip.nic=eth1", evil)
		t.Cleanup(func() { r.docker("rm", "-f", name) })
		r.problem(name, "image", "eip.except=0.0.0.0/0")
		r.leaves(t, name, r.EIP("eth1").String()) // its own label counts
	}
	r.clean()
}

// ceilingOfStock: what a label asks beyond the network's eip.allow is held, and said to be.
func (r *rig) ceilingOfStock(t *testing.T) {
	r.docker("network", "create", "--label", "eip.allow=eth0,eth1", "ceiling")
	t.Cleanup(func() { r.docker("network", "rm", "ceiling") })
	r.start(t, "within", "--network", "ceiling", "--label", "eip.nic=eth1")
	r.leaves(t, "within", r.EIP("eth1").String())
	r.start(t, "beyond", "--network", "ceiling", "--label", "eip.nic=eth2")
	r.problem("beyond", "eip.allow=eth0,eth1")
	r.held(t, "beyond")
	r.clean()
}

// fallbackHost: when its NIC is taken away, eip.fallback=host follows the host,
// and everything else is held; when the NIC is back, so is the pin.
func (r *rig) fallbackHost(t *testing.T) {
	names := map[string]bool{} // whether it may follow the host
	for _, on := range []string{network, "bridge"} {
		for _, fallback := range []string{"host", "hold"} {
			name := fallback + "-" + on
			names[name] = fallback == "host"
			r.start(t, name, "--network", on, "--label", "eip.nic=eth2", "--label", "eip.fallback="+fallback)
			r.leaves(t, name, r.EIP("eth2").String())
		}
	}
	r.resetSniffers()
	if err := r.Unplug("eth2"); err != nil {
		t.Fatal(err)
	}
	for name, follows := range names {
		if !follows {
			r.awaitState(name, plan.StateBlocked)
			r.held(t, name)
			continue
		}
		r.leaves(t, name, r.EIP("eth0").String())
		r.problem(name, "eip.fallback=host")
	}
	if err := r.Plug("eth2"); err != nil {
		t.Fatal(err)
	}
	for name := range names {
		r.awaitState(name, plan.StatePinned)
		r.leaves(t, name, r.EIP("eth2").String())
	}
	r.clean()
}

// endpointOption: on a stock network, which no list of Docker's tells, also of one
// that is connected at run time, and over the label.
func (r *rig) endpointOption(t *testing.T) {
	for _, name := range []string{"a-first", "b-second"} {
		r.docker("network", "create", name)
		t.Cleanup(func() { r.docker("network", "rm", name) })
	}
	r.start(t, "option", "--network", "name=a-first,driver-opt=eip.nic=eth2", "--label", "eip.nic=eth1")
	r.leaves(t, "option", r.EIP("eth2").String())
	r.start(t, "late", "--network", "b-second")
	r.leaves(t, "late", r.EIP("eth0").String())
	r.docker("network", "connect", "--driver-opt", "eip.nic=eth2", "a-first", "late")
	r.leaves(t, "late", r.EIP("eth2").String())
	r.docker("restart", "-t", "1", "option")
	r.leaves(t, "option", r.EIP("eth2").String())
	r.resetSniffers()
	r.stop()
	r.serve()
	for _, name := range []string{"option", "late"} { // at once: the first view knows it
		r.leavesAs(t, name, r.EIP("eth2").String())
	}
	r.onlyBy("eth2", lab.ProtoTCP, lab.SiteAddr)
	r.clean()
}

// linkLocalSwitch: link-local destinations follow the host, unless --except says
// otherwise; then they follow the pin.
func (r *rig) linkLocalSwitch(t *testing.T) {
	metadata := netip.MustParseAddr("169.254.169.254")
	names := []string{"asks-" + network, "asks-bridge"}
	for i, on := range []string{network, "bridge"} {
		r.start(t, names[i], "--network", on, "--label", "eip.nic=eth1")
	}
	by := func(nic string) {
		t.Helper()
		for _, name := range names {
			r.awaitState(name, plan.StatePinned)
			r.resetSniffers()
			if out, err := r.exec(name, "udp", netip.AddrPortFrom(metadata, 80).String(), "hi"); err == nil {
				t.Errorf("the lab has no metadata service, and yet it said %q", out)
			}
			r.onlyBy(nic, lab.ProtoUDP, metadata)
		}
		r.clean()
	}
	r.saysStatus(t, "follow the host's routing: 169.254.0.0/16\n")
	by("eth0")
	r.stop()
	r.args = append(r.args, "--except", "")
	r.serve()
	if s, err := r.status(); err != nil || len(s.Except) > 0 {
		t.Errorf("with --except '' status lists %v, %v", s.Except, err)
	}
	by("eth1")
}
