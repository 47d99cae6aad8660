package plan_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// The ports of an endpoint that is not decided yet are reserved and not
// forwarded; what is published goes first.
func TestSparePorts(t *testing.T) {
	const all = "0.0.0.0:8090"
	port := func(host string) model.Publish {
		p := model.Publish{Proto: model.TCP, HostPort: 8090, Port: 8080}
		if host != "" {
			p.HostIP = addr(host)
		}
		return p
	}
	for _, tc := range []struct {
		name        string
		edit        func(in *plan.Snapshot)
		ports, want []string
	}{
		{"nothing said", func(*plan.Snapshot) {}, nil, []string{all}},
		{"an address was given", func(in *plan.Snapshot) { in.Endpoints[0].Publishes[0] = port("172.31.0.14") }, nil, []string{"172.31.0.14:8090"}},
		{"labels are not known, the network names a NIC", func(in *plan.Snapshot) {
			in.Endpoints[0].Container = model.Container{}
			in.Networks[0].Options = label("eip.nic=eth2")
		}, nil, []string{"172.31.0.21:8090"}},
		{"decided", func(in *plan.Snapshot) { in.DockerUp = true }, []string{all}, nil},
		{"not connected yet", func(in *plan.Snapshot) { in.Endpoints[0].Phase = model.Created }, nil, nil},
		{"another's on one address", func(in *plan.Snapshot) {
			other := endpoint(3, label("eip.nic=eth1"))
			other.Publishes = []model.Publish{port("")}
			in.Endpoints = append(in.Endpoints, other)
		}, []string{"172.31.0.14:8090"}, nil},
		{"two of the same", func(in *plan.Snapshot) {
			other := endpoint(3, nil)
			other.Publishes = []model.Publish{port("")}
			in.Endpoints = append(in.Endpoints, other)
		}, nil, []string{all}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := endpoint(2, nil)
			e.Publishes = []model.Publish{port("")}
			in := snapshot(e)
			in.DockerUp = false
			tc.edit(&in)
			d, _ := plan.Compute(in)
			list := func(ports []plan.Port) (out []string) {
				for _, p := range ports {
					out = append(out, fmt.Sprint(netip.AddrPortFrom(p.Forward.Addr, p.Forward.Port)))
				}
				return out
			}
			if diff := cmp.Diff(tc.ports, list(d.Ports)); diff != "" {
				t.Errorf("published (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.want, list(d.Spare)); diff != "" {
				t.Errorf("reserved alone (-want +got):\n%s", diff)
			}
			if len(d.Firewall.Forwards) != len(d.Ports) {
				t.Errorf("forwarded: %v", d.Firewall.Forwards)
			}
		})
	}
}
