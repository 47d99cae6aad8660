package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// TestGateways: Docker has one of a container's networks carry its default route
// and its ports. Which one moves when networks are connected and disconnected
// and, with Docker 28, by priority. The ports follow, status says where they
// are not and why, and the pin holds all the while.
func TestGateways(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet})
	g := gateways{r, make(map[string]string)}
	for i, n := range []string{"a_net", "m_net", "z_net"} {
		id := r.docker("network", "create", "-d", "eipnet", "--subnet", fmt.Sprintf("172.%d.0.0/16", 40+i), n)
		g.names[id] = n
	}
	r.docker("network", "create", "--subnet", "172.43.0.0/16", "0_stock")
	r.docker("run", "-d", "--name", "keeper", "--network", "z_net", "--label", "eip.nic=eth1", lab.Image) // eth1 stays managed

	r.start(t, "both", "--network", "m_net", "--label", "eip.nic=eth1", "-p", "8090:8080", "-p", "8091:9/udp")
	g.publishedOn(t, "m_net")
	t.Run("by name", func(t *testing.T) {
		r.docker("network", "connect", "z_net", "both")
		g.publishedOn(t, "m_net", "z_net")
		r.docker("network", "connect", "a_net", "both")
		g.publishedOn(t, "a_net", "m_net", "z_net")
		r.docker("network", "disconnect", "a_net", "both")
		g.publishedOn(t, "m_net", "z_net")
	})
	t.Run("a network of Docker's", func(t *testing.T) {
		r.docker("network", "connect", "0_stock", "both")
		g.publishedOn(t, "", "m_net", "z_net") // Docker's own business now, and they answer as well
		r.docker("network", "disconnect", "0_stock", "both")
		g.publishedOn(t, "m_net", "z_net")
	})
	t.Run("restart", func(t *testing.T) {
		r.docker("restart", "-t", "1", "both")
		r.kill()
		r.serve()
		g.publishedOn(t, "m_net", "z_net")
	})
	if engine() == pageEngine {
		t.Run("by priority", g.byPriority)
		t.Run("one for each family", g.families)
	}
	r.clean()
}

type gateways struct {
	*rig
	names map[string]string // of eipnet networks, by id
}

func (g gateways) byPriority(t *testing.T) {
	g.docker("network", "connect", "--gw-priority", "-1", "a_net", "both")
	g.publishedOn(t, "m_net", "a_net", "z_net")
	g.docker("rm", "-f", "both")
	g.docker("run", "-d", "--name", "both", "--network", "name=a_net", "--network", "name=z_net,gw-priority=1", "--label", "eip.nic=eth1",
		"-p", "8090:8080", "-p", "8091:9/udp", lab.Image)
	g.publishedOn(t, "z_net", "a_net")
}

// families: IPv4 and IPv6 may have a network each. Docker then has both publish
// the same ports, and each does what it can.
func (g gateways) families(t *testing.T) {
	g.docker("network", "create", "-d", "eipnet", "--ipv6", "--ipv4=false", "--subnet", "fd00:44::/64", "six")
	g.docker("rm", "-f", "both")
	g.docker("run", "-d", "--name", "both", "--network", "name=a_net,gw-priority=1", "--network", "six", "--label", "eip.nic=eth1",
		"-p", "8090:8080", "-p", "8080", lab.Image)
	g.sees(t, g.url("eth1", 8090)+"remote", lab.SiteAddr)
	g.sees(t, g.url6("eth1", 8090, "remote"), lab.SiteAddr6)
	s, err := g.status()
	if err != nil {
		t.Fatal(err)
	}
	chosen := make(map[uint16]int) // in how many families
	for _, e := range s.Endpoints {
		for _, p := range e.Ports {
			outside, _, _ := strings.Cut(p, "->")
			chosen[netip.MustParseAddrPort(outside).Port()]++
		}
		if e.NotGateway {
			t.Errorf("%v is no gateway", e.Addresses)
		}
	}
	if len(chosen) != 2 || chosen[8090] != 2 {
		t.Errorf("ports, and in how many families: %v; want two in both", chosen)
	}
	for port, n := range chosen {
		if n != 2 {
			t.Errorf("port %d is published %d times", port, n)
		}
	}
}

// publishedOn checks that the container's ports are published on this network
// (none: by Docker) and not on the others, that status says so, that they
// answer, and that the container leaves by its NIC.
func (g gateways) publishedOn(t *testing.T, gateway string, others ...string) {
	t.Helper()
	g.eventually("ports on "+gateway, func() error {
		s, err := g.status()
		if err != nil {
			return err
		}
		var elsewhere []string
		dockers := gateway != "" // nobody waits for the pin where Docker has the gateway
		for _, e := range s.Endpoints {
			name := g.names[e.NetworkID]
			switch {
			case e.Container != "both":
				continue
			case e.NotGateway:
				elsewhere = append(elsewhere, name)
			case name == "":
				dockers = true
			case name != "" && name == gateway && len(e.Ports) != 4: // each in both families
				return fmt.Errorf("%s has ports %v", name, e.Ports)
			}
			if e.State != plan.StatePinned || e.NotGateway && len(e.Ports) > 0 {
				return fmt.Errorf("on %s: %s, ports %v, not the gateway: %v", name, e.State, e.Ports, e.NotGateway)
			}
		}
		if !dockers {
			return errors.New("the endpoint of Docker's network is not there yet")
		}
		slices.Sort(elsewhere)
		if !slices.Equal(elsewhere, others) {
			return fmt.Errorf("not the gateway: %v, want %v", elsewhere, others)
		}
		return nil
	})
	g.eventually("status to say which networks do not carry the ports", func() error {
		out, err := g.Host.Run(t.Context(), "eipnet", "status")
		if n := strings.Count(out, "Ports of both are not published for "); n != len(others) {
			err = errors.Join(err, fmt.Errorf("it says so of %d, want %d:\n%s", n, len(others), out))
		}
		return err // exit code 2: there are problems
	})
	g.answers(g.url("eth1", 8090)+"hello", "hello")
	g.leavesAs(t, "both", g.EIP("eth1").String())
}
