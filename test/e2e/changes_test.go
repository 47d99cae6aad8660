package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

// TestChanges: what an administrator or a DHCP client does to a NIC is followed
// at once, and back again; and Docker with live-restore may restart meanwhile.
func TestChanges(t *testing.T) {
	r := up(t, lab.Config{Shape: lab.OneSubnet, RPFilter: "1", DockerdArgs: []string{"--live-restore"}})
	r.createNetwork()
	r.run(t, "byname", "--label", "eip.nic=eth1", "-p", "8090:8080", "-p", "8081:8081")
	r.run(t, "byip", "--label", "eip.ip="+r.Addr("eth1").String(), "-p", "8091:8080")
	r.run(t, "other", "--label", "eip.nic=eth2", "-p", "8092:8081")
	works := func(t *testing.T) {
		t.Helper()
		for name, port := range map[string]int{"byname": 8090, "byip": 8091} {
			r.answers(r.url("eth1", port), r.EIP("eth1").String())
			r.leaves(t, name, r.EIP("eth1").String())
		}
	}
	works(t)
	other := openSession(t, "into other", r.Site, fmt.Sprintf("%v:8092", r.EIP("eth2")))

	t.Run("address", func(t *testing.T) {
		now := r.NIC("eth1").Addr
		next := netip.PrefixFrom(netip.MustParseAddr("172.31.0.99"), now.Bits())
		change := func(from, to netip.Prefix) {
			r.on("sh", "-c", fmt.Sprintf("ip addr del %v dev eth1; ip addr add %v dev eth1", from, to))
		}
		change(now, next)
		r.pin(t, "byname", plan.StatePinned, next.Addr().String())
		r.pin(t, "byip", plan.StateBlocked)
		change(next, now)
		works(t)
		// The cloud knows nothing of the other address; and what the host itself
		// answered from eth1's, before it was seen to be back, waits for eth0's gateway.
		r.resetSniffers()
	})
	t.Run("gateway", func(t *testing.T) {
		r.on("ip", "route", "add", "default", "via", "172.31.0.250", "dev", "eth1", "metric", "900")
		r.gateway(t, "172.31.0.250")
		r.on("ip", "route", "del", "default", "via", "172.31.0.250", "dev", "eth1", "metric", "900")
		r.gateway(t, "172.31.0.1")
		works(t)
	})
	t.Run("MTU", func(t *testing.T) {
		r.on("ip", "link", "set", "eth1", "mtu", "1400")
		works(t)
		r.on("ip", "link", "set", "eth1", "mtu", "1500")
		works(t)
	})
	t.Run("name", func(t *testing.T) {
		rename := func(from, to string) {
			r.on("sh", "-c", fmt.Sprintf("ip link set %s down; ip link set %s name %s; ip link set %s up", from, from, to, to))
		}
		rename("eth1", "lan1")
		r.pin(t, "byname", plan.StateBlocked)
		r.answers(r.url("eth1", 8091), r.EIP("eth1").String())
		r.leaves(t, "byip", r.EIP("eth1").String())
		r.held(t, "byname")
		rename("lan1", "eth1")
		works(t)
	})
	t.Run("live-restore", func(t *testing.T) {
		signals := []syscall.Signal{syscall.SIGKILL}
		if soak() {
			signals = append(signals, syscall.SIGTERM)
		}
		for _, sig := range signals {
			mine := openSession(t, "into byname", r.Site, fmt.Sprintf("%v:8081", r.EIP("eth1")))
			if err := r.StopEngine(t.Context(), sig); err != nil {
				t.Fatal(err)
			}
			r.answers(r.url("eth1", 8090), r.EIP("eth1").String())
			if err := r.StartEngine(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.ready()
			works(t)
			mine.goesOn(t)
		}
		r.docker("restart", "-t", "0", "byip")
		works(t)
	})
	other.goesOn(t)
	r.clean()
}

// pin waits until status says so of a container, and what it leaves as.
func (r *rig) pin(t *testing.T, name string, state plan.State, as ...string) {
	t.Helper()
	r.eventually(name+" to be "+string(state), func() error {
		s, err := r.status()
		if err != nil {
			return err
		}
		err = errors.New("status does not list it")
		for _, e := range s.Endpoints {
			if e.Container != name {
				continue
			}
			var got []string
			for _, a := range e.LeavesAs {
				got = append(got, a.String())
			}
			if e.State != state || !slices.Equal(got, as) {
				return fmt.Errorf("it is %s as %v", e.State, got)
			}
			err = nil
		}
		return err
	})
}

// gateway waits until what is pinned to eth1 goes by that gateway.
func (r *rig) gateway(t *testing.T, want string) {
	t.Helper()
	r.eventually("the gateway "+want, func() error {
		s, err := r.status()
		if err != nil {
			return err
		}
		for _, n := range s.NICs {
			if n.Name != "eth1" {
				continue
			}
			table := r.on("ip", "route", "show", "table", strconv.FormatUint(uint64(n.Table), 10))
			if n.Gateway.String() != want || !strings.Contains(table, "default via "+want+" ") {
				return fmt.Errorf("it is %v, and the table says %s", n.Gateway, table)
			}
		}
		return nil
	})
}
