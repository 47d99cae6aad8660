package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/test/lab"
)

// TestPorts: publishing as on Docker's bridge, in one lab.
func TestPorts(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	r.createNetwork()
	r.docker("network", "create", "plain")
	t.Run("EIP as host address", r.portsOnEIP)
	t.Run("loopback", r.portsOnLoopback)
	t.Run("chosen as Docker does", r.portsChosen)
	t.Run("texts", r.portsTexts)
	t.Run("network options", r.networkOptions)
	t.Run("no masquerade", r.noMasquerade)
	t.Run("many", r.manyPorts)
	r.clean()
}

// portsOnEIP: by the EIP of another NIC than the pin's, and answered there.
func (r *rig) portsOnEIP(t *testing.T) {
	r.run(t, "eip", "--label", "eip.nic=eth0", "-p", r.EIP("eth1").String()+":8090:8080")
	r.answers(r.url("eth1", 8090), r.EIP("eth0").String())
	if got := r.publishedPorts(t, "eip"); !slices.Equal(got, []string{"172.31.0.14:8090->8080/tcp"}) {
		t.Errorf("published: %v", got)
	}
}

// portsOnLoopback: reached by the host's programs, and by nobody else.
func (r *rig) portsOnLoopback(t *testing.T) {
	const routeLocalnet = "net.ipv4.conf." + bridge + ".route_localnet"
	before := r.on("sysctl", "-n", routeLocalnet)
	r.docker("run", "-d", "--name", "local", "--network", network, "--label", "eip.nic=eth1",
		"-p", "127.0.0.1:8091:8080", "-p", "127.0.0.1:8091:8080/udp", lab.Image)
	r.docker("run", "-d", "--name", "everywhere", "--network", network, "-p", "8092:8080", lab.Image)
	for _, port := range []int{8091, 8092} {
		r.eventually(fmt.Sprintf("127.0.0.1:%d", port), func() error {
			got, err := r.HostGet(t.Context(), netip.Addr{}, fmt.Sprintf("http://127.0.0.1:%d/remote", port))
			if err == nil && !strings.HasPrefix(got, "172.19.0.1:") {
				err = fmt.Errorf("the container saw %s", got)
			}
			return err
		})
	}
	r.eventually("127.0.0.1:8091/udp", func() error { return r.hostEcho(t.Context(), "127.0.0.1:8091") })
	if got, err := r.SiteGet(t.Context(), r.url("eth1", 8091)); err == nil {
		t.Errorf("a port on the loopback answers from outside: %q", got)
	}
	if got := strings.TrimSpace(r.on("sysctl", "-n", routeLocalnet)); got != "1" {
		t.Errorf("%s=%s", routeLocalnet, got)
	}
	r.docker("rm", "-f", "local", "everywhere")
	r.eventually(routeLocalnet+" to be put back", func() error {
		if got := r.on("sysctl", "-n", routeLocalnet); got != before {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
}

// hostEcho sends a datagram from the host and waits for its echo.
func (r *rig) hostEcho(ctx context.Context, to string) error {
	c, err := r.HostDial(ctx, netip.Addr{}, "udp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	n, err := c.Read(make([]byte, 1500))
	if err == nil && n == 0 {
		err = errors.New("the echo is empty")
	}
	return err
}

// portsChosen asks both drivers for the same, one behind the other.
func (r *rig) portsChosen(t *testing.T) {
	args := []string{
		"run", "-d", "--name", "chosen", "--expose", "8080", "--expose", "9/udp", "-P",
		"-p", "0.0.0.0:8500-8502:8081", "-p", "0.0.0.0::8081", "-p", "0.0.0.0:8600:8080", "-p", "0.0.0.0:8601:8080",
	}
	ask := func(network string, list func() []string) []string {
		t.Helper()
		r.docker(append(slices.Clone(args), "--network", network, lab.Image)...)
		defer r.docker("rm", "-f", "chosen")
		return list()
	}
	docker := ask("plain", func() (ports []string) {
		for line := range strings.Lines(r.docker("port", "chosen")) {
			inside, outside, _ := strings.Cut(strings.TrimSpace(line), " -> ")
			if strings.Count(outside, ":") == 1 { // IPv4; older ones print :::32768
				ports = append(ports, outside+"->"+inside)
			}
		}
		return ports
	})
	ours := ask(network, func() []string {
		return slices.DeleteFunc(r.publishedPorts(t, "chosen"), func(p string) bool { return strings.HasPrefix(p, "[") })
	})
	slices.Sort(docker)
	slices.Sort(ours)
	if diff := cmp.Diff(docker, ours); diff != "" || len(ours) != 5 {
		t.Errorf("ports (-Docker's bridge +eipnet)\n%s", diff)
	}
}

// publishedPorts is what status shows of a container.
func (r *rig) publishedPorts(t *testing.T, container string) (ports []string) {
	t.Helper()
	r.in(t).eventually("status to know "+container, func() error {
		s, err := r.status()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(s.Endpoints, func(e api.Endpoint) bool { return e.Container == container })
		if i < 0 {
			return fmt.Errorf("it knows %+v", s.Endpoints)
		}
		ports = s.Endpoints[i].Ports
		return nil
	})
	return ports
}

// portsTexts compares what both drivers say where a port cannot be had.
func (r *rig) portsTexts(t *testing.T) {
	where := regexp.MustCompile(`(?s)^.*on endpoint refused \([0-9a-f]+\): (NetworkDriver\.ProgramExternalConnectivity: )?`)
	for name, publish := range map[string]string{"fixed": "0.0.0.0:8700:8080", "range": "0.0.0.0:8700-8701:8080"} {
		text := func(network string) string {
			r.docker("run", "-d", "--name", "first", "--network", network, "-p", "0.0.0.0:8700:8080", "-p", "0.0.0.0:8701:8080", lab.Image)
			defer r.docker("rm", "-f", "first")
			defer func() { _, _ = r.Docker(context.WithoutCancel(t.Context()), "rm", "-f", "refused") }()
			said := r.refused("run", "--name", "refused", "--network", network, "-p", publish, lab.Image, "sleep")
			line, _, _ := strings.Cut(where.ReplaceAllString(said, ""), "\n")
			return strings.TrimSpace(line)
		}
		if diff := cmp.Diff(text("plain"), text(network)); diff != "" {
			t.Errorf("%s (-Docker's bridge +eipnet)\n%s", name, diff)
		}
	}
}

// networkOptions: those of the bridge driver, and of docker network create itself.
func (r *rig) networkOptions(t *testing.T) {
	const net = "options"
	r.docker("network", "create", "-d", "eipnet", "--subnet", "172.23.0.0/16", "--gateway", "172.23.0.9", "--ip-range", "172.23.5.0/24",
		"--aux-address", "somebody=172.23.5.1", "-o", "com.docker.network.bridge.name=eip_options",
		"-o", "com.docker.network.bridge.enable_icc=false", "-o", "com.docker.network.bridge.host_binding_ipv4=127.0.0.1", net)
	defer r.docker("network", "rm", net)
	for _, name := range []string{"one", "two"} {
		r.docker("run", "-d", "--name", name, "--network", net, lab.Image)
		defer r.docker("rm", "-f", name)
	}
	r.docker("run", "-d", "--name", "three", "--network", net, "-p", "8800:8080", "-p", r.Addr("eth0").String()+":8801:8080", lab.Image)
	defer r.docker("rm", "-f", "three")

	if got := r.on("ip", "-4", "-o", "addr", "show", "eip_options"); !strings.Contains(got, "inet 172.23.0.9/16 ") {
		t.Errorf("the bridge's address: %s", got)
	}
	if got := r.ip(t, "one", net); got != netip.MustParseAddr("172.23.5.0") && got != netip.MustParseAddr("172.23.5.2") {
		t.Errorf("the first container's address is %v", got)
	}
	// Siblings meet at published ports only.
	two := r.ip(t, "two", net).String()
	if got, err := r.exec("one", "get", "http://"+two+":8080/hello"); err == nil {
		t.Errorf("without icc, a sibling answers %q", got)
	}
	if got, err := r.exec("one", "get", "http://"+r.Addr("eth0").String()+":8801/hello"); err != nil || got != "hello" {
		t.Errorf("a sibling's published port: %q, %v", got, err)
	}
	if got, err := r.HostGet(t.Context(), netip.Addr{}, "http://"+two+":8080/hello"); err != nil || got != "hello" {
		t.Errorf("the host to a container: %q, %v", got, err)
	}
	if got := r.publishedPorts(t, "three"); !slices.Equal(got, []string{"127.0.0.1:8800->8080/tcp", "172.31.0.8:8801->8080/tcp"}) {
		t.Errorf("published: %v", got)
	}
}

// ip is a container's address on a network.
func (r *rig) ip(t *testing.T, container, network string) netip.Addr {
	t.Helper()
	got := r.docker("inspect", "-f", fmt.Sprintf(`{{(index .NetworkSettings.Networks %q).IPAddress}}`, network), container)
	addr, err := netip.ParseAddr(got)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// noMasquerade: what is unpinned leaves with its own address, which this cloud
// does not take; what is pinned does not.
func (r *rig) noMasquerade(t *testing.T) {
	const net = "bare"
	r.docker("network", "create", "-d", "eipnet", "--subnet", "172.24.0.0/16", "-o", "com.docker.network.bridge.enable_ip_masquerade=false", net)
	defer r.docker("network", "rm", net)
	r.docker("run", "-d", "--name", "pinned", "--network", net, "--label", "eip.nic=eth1", lab.Image)
	defer r.docker("rm", "-f", "pinned")
	r.docker("run", "-d", "--name", "free", "--network", net, lab.Image)
	defer r.docker("rm", "-f", "free")
	r.leaves(t, "pinned", r.EIP("eth1").String())
	r.clean()
	if got, err := r.exec("free", "get", siteIP); err == nil {
		t.Errorf("without masquerade it left as %s", got)
	}
	if err := r.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	foreign, err := r.Foreign(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bare := r.ip(t, "free", net)
	for _, f := range foreign {
		if f.Src != bare {
			t.Errorf("foreign packet: %v", f)
		}
	}
	if len(foreign) == 0 {
		t.Error("no packet left with the container's own address")
	}
	r.resetSniffers()
}
