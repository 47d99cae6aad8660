package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/test/lab"
)

// TestProxied: a container without IPv6 is reached over it, and answered by the
// NIC that was asked: at each NIC's address if it is unpinned, at its own NIC's if
// it is pinned; whatever --host-replies says, and where the host's own IPv6 leaves
// by another NIC.
func TestProxied(t *testing.T) {
	for _, replies := range []string{"secondary", "off"} {
		t.Run(replies, func(t *testing.T) { proxied(t, replies) })
	}
}

func proxied(t *testing.T, replies string) {
	r := up(t, lab.Config{Shape: lab.ThreeSubnets}, "--host-replies", replies)
	r.createNetwork()
	seen := netip.MustParseAddr("172.19.0.1") // the bridge's
	by := func(nic string, tcp, udp int) {
		t.Helper()
		r.resetSniffers()
		r.sees(t, r.url6(nic, tcp, "remote"), seen)
		r.connectedBy(nic)
		r.eventually("UDP at "+nic, func() error {
			got, err := r.udpFromSite(fmt.Sprintf("[%v]:%d", r.Addr6(nic), udp))
			if err == nil && !strings.HasPrefix(got, seen.String()+":") {
				err = fmt.Errorf("the container answered %q", got)
			}
			return err
		})
		r.onlyBy(nic, lab.ProtoUDP, lab.SiteAddr6)
		r.clean()
	}
	free := func() {
		t.Helper()
		for _, n := range r.NICs() {
			by(n.Name, 8090, 8091)
		}
	}
	r.run(t, "free", "-p", "8090:8080", "-p", "8091:8080/udp")
	free()
	r.run(t, "zero", "--label", "eip.nic=eth0", "-p", "8095:8080", "-p", "8096:8080/udp")
	r.run(t, "one", "--label", "eip.nic=eth1", "-p", "8095:8080", "-p", "8096:8080/udp", "-p", "8097:8081")
	by("eth0", 8095, 8096)
	by("eth1", 8095, 8096)
	if got, err := r.SiteGet(t.Context(), r.url6("eth2", 8095, "remote")); err == nil {
		t.Errorf("at eth2 the site was answered %q", got)
	}
	// Who asks from inside is answered there.
	r.docker("network", "create", "-d", "eipnet", "--ipv6", "--subnet", "172.25.0.0/16", "--subnet", "fd00:25::/64", "six")
	r.start(t, "asker", "--network", "six")
	for _, nic := range []string{"eth0", "eth1"} {
		for _, port := range []int{8090, 8095} {
			if got, err := r.exec("asker", "get", r.url6(nic, port, "remote")); err != nil || !strings.HasPrefix(got, seen.String()+":") {
				t.Errorf("%s:%d, from another network: %q, %v", nic, port, got, err)
			}
		}
	}

	r.on("ip", "-6", "route", "add", "default", "via", r.NIC("eth2").Gateway6.String(), "dev", "eth2", "metric", "1")
	free()
	by("eth0", 8095, 8096)
	by("eth1", 8095, 8096)

	s := openSession(t, "with one", r.Site, fmt.Sprintf("[%v]:8097", r.Addr6("eth1")))
	r.resetSniffers()
	r.on("nft", "flush", "ruleset")
	s.goesOn(t)
	r.kill() // and what goes through the daemon with it
	r.serve()
	by("eth1", 8095, 8096)
	free()
}
