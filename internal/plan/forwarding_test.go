package plan_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// IPv6 is forwarded for networks of ours that have it, and routers' advice
// counts on; what somebody else switched on is left alone.
func TestForwarding6(t *testing.T) {
	const (
		forwarding = "net/ipv6/conf/all/forwarding 0→1"
		both       = forwarding + " net/ipv6/conf/eth0/accept_ra 1→2 net/ipv6/conf/wwan0/accept_ra 1→2"
	)
	v6 := prefix("fd00:19::/64")
	dual := func(in *plan.Snapshot) { in.Networks[0].Subnet6, in.Networks[0].Gateway6 = v6, addr("fd00:19::1") }
	for _, tc := range []struct {
		name string
		edit func(*plan.Snapshot)
		want string
	}{
		{"no IPv6", func(*plan.Snapshot) {}, ""},
		{"dual stack", dual, both},
		{"before Docker has answered", func(in *plan.Snapshot) { dual(in); in.DockerUp = false }, ""},
		{"a network of Docker's", func(in *plan.Snapshot) { dual(in); in.Networks[0].Stock = true }, ""},
		{"forwarded already", func(in *plan.Snapshot) { dual(in); in.Host.Sysctls[plan.Forwarding6] = "1" }, ""},
		{"forwarded by us", func(in *plan.Snapshot) {
			dual(in)
			in.Host.Sysctls[plan.Forwarding6], in.Host.Forwarding6Ours = "1", true
		}, both},
		{"forwarded by us, our last one is gone", func(in *plan.Snapshot) {
			in.Host.Sysctls[plan.Forwarding6], in.Host.Forwarding6Ours = "1", true
			in.Host.Bridges = []model.Bridge{{Name: "docker0", Subnets: []model.Subnet{{Prefix: prefix("172.17.0.0/16")}}}}
		}, ""},
		{"… but a bridge of Docker's has come to depend on it", func(in *plan.Snapshot) {
			in.Host.Sysctls[plan.Forwarding6], in.Host.Forwarding6Ours = "1", true
			in.Host.Bridges = []model.Bridge{{Name: "docker0", Subnets: []model.Subnet{{Prefix: prefix("172.17.0.0/16")}, {Prefix: v6}}}}
		}, both},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := snapshot()
			in.Host.Sysctls = map[string]string{plan.Forwarding6: "0"}
			in.Host.Advertised = []string{"eth0", "wwan0"}
			tc.edit(&in)
			d, _ := plan.Compute(in)
			var got []string
			for _, s := range d.Sysctls {
				if strings.HasPrefix(s.Path, "net/ipv6") {
					got = append(got, s.Path+" "+strings.Join(s.From, ",")+"→"+s.Value)
				}
			}
			if diff := cmp.Diff(tc.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("sysctls (-want +got):\n%s", diff)
			}
			var apart []model.Family
			if in.Host.Forwarding6Ours {
				apart = []model.Family{model.IPv6}
			}
			if diff := cmp.Diff(apart, d.Firewall.NoForward); diff != "" {
				t.Errorf("families that are not forwarded (-want +got):\n%s", diff)
			}
		})
	}
}
