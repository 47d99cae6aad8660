package host

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/eipnet/eipnet/internal/delay"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/netnstest"
)

func TestWatchPokes(t *testing.T) {
	ns := netnstest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	pokes, ended := make(chan struct{}, 1), make(chan error, 1)
	poke := func() {
		select {
		case pokes <- struct{}{}:
		default:
		}
	}
	ns.Do(func() {
		for _, path := range []string{ipForward, conf4("all", "rp_filter"), conf4("default", "rp_filter"), conf6("all", "forwarding")} {
			setSysctl(t, path, "0")
		}
	})
	go ns.Do(func() {
		h, _ := open(t, Options{})
		ended <- h.Watch(ctx, Notices{Changed: poke, Turned: func() {}, PortUp: func(string) {}})
	})
	<-pokes // it sees changes from now on
	settle := func() {
		for quiet := false; !quiet; {
			select {
			case <-pokes:
			default:
				quiet = !delay.For(ctx, 0) || len(pokes) == 0
			}
		}
	}
	for _, args := range []string{
		"link add eth0 type veth peer name far",
		conf4("eth0", "rp_filter") + "=1", conf4("eth0", "rp_filter") + "=2", conf4("all", "rp_filter") + "=1",
		ipForward + "=1", conf6("all", "forwarding") + "=1", "link set eth0 up", "link set far up", "addr add 172.31.0.8/20 dev eth0",
		"route add 10.0.0.0/8 via 172.31.0.1", "route add default via 172.31.0.1 table 8101 proto 201",
		"rule add pref 5110 fwmark 1 lookup 8101 proto 201", "-6 rule add pref 5110 fwmark 1 lookup 8101",
		"rule del pref 5110", "route del 10.0.0.0/8", "link set eth0 group 45", "link del eth0",
	} {
		settle()
		ns.Do(func() {
			if path, value, ok := strings.Cut(args, "="); ok {
				setSysctl(t, path, value)
			} else {
				ip(t, args)
			}
		})
		eventually(t, "poke after "+args, func() bool {
			select {
			case <-pokes:
				return true
			default:
				return false
			}
		})
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Watch ended with %v", err)
	}
}

// TestWatchPortUp: a bridge is told when the container's end of a port is up,
// and not before.
func TestWatchPortUp(t *testing.T) {
	ns, far := netnstest.New(t), netnstest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	pokes, turned, up, ended := make(chan struct{}, 1), make(chan struct{}, 16), make(chan string, 16), make(chan error, 1)
	ns.Do(func() { ip(t, "link add br-web type bridge"); ip(t, "link set br-web up") })
	go ns.Do(func() {
		h, _ := open(t, Options{})
		ended <- h.Watch(ctx, Notices{Changed: func() {
			select {
			case pokes <- struct{}{}:
			default:
			}
		}, Turned: func() { turned <- struct{}{} }, PortUp: func(bridge string) { up <- bridge }})
	})
	<-pokes
	ns.Do(func() {
		ip(t, "link add alone type veth peer name alone2")
		ip(t, "link set alone up")
		ip(t, "link set alone2 up") // no port
		ip(t, "link add veth1 type veth peer name eth0")
		ip(t, "link set veth1 master br-web")
		ip(t, "link set veth1 up")
		eth0, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkSetNsFd(eth0, far.FD())
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if len(up) > 0 {
		t.Errorf("told %q before the far end is up", <-up)
	}
	far.Do(func() { ip(t, "link set eth0 up") })
	if got := <-up; got != "br-web" {
		t.Errorf("told %q", got)
	}
	if len(turned) > 0 {
		t.Error("told of a NIC that is not managed")
	}
	neighbours := func() (out string) {
		ns.Do(func() { out = execOutput(t, "ip neigh show dev nic") })
		return out
	}
	ns.Do(func() {
		ip(t, "link add nic type veth peer name wire")
		ip(t, fmt.Sprintf("link set nic group %d", model.NICGroup))
		ip(t, "addr add 172.31.0.14/20 dev nic")
		ip(t, "link set nic up")
		ip(t, "link set wire up")
	})
	<-turned // switched on
	<-turned // and has a carrier
	ns.Do(func() {
		ip(t, "neigh add 172.31.0.2 lladdr 02:00:00:00:00:02 dev nic nud permanent")
		ip(t, "link set wire down")
	})
	<-turned
	ns.Do(func() { ip(t, "neigh add 172.31.0.1 dev nic nud failed") }) // what is sent meanwhile does that
	if got := neighbours(); !strings.Contains(got, "172.31.0.1 ") {
		t.Fatalf("neighbours: %s", got)
	}
	ns.Do(func() { ip(t, "link set wire up") })
	<-turned
	if got := neighbours(); strings.Contains(got, "172.31.0.1 ") || !strings.Contains(got, "172.31.0.2 ") {
		t.Errorf("neighbours that are not forgotten, and should be: %s", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Watch ended with %v", err)
	}
}
