package plan_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestUnusedSettings: what a flag says and matches nothing is a warning as long as that is so.
func TestUnusedSettings(t *testing.T) {
	in := snapshot()
	in.Host.Unmatched = []string{"eth7"}
	in.Settings.EIPs = map[netip.Addr]netip.Addr{addr("119.26.38.75"): addr("172.31.0.14"), addr("1.2.3.4"): addr("172.31.0.99")}
	in.Settings.StrictNetworks = []string{"br", "brr", "5f9c", "ours"}
	in.Networks = append(in.Networks,
		model.Network{ID: "1a2b", Name: "br", Stock: true}, model.Network{ID: "5f9c", Name: "byid", Stock: true}, model.Network{ID: "0000", Name: "ours", Bridge: "eip_ours"})
	said := func() (subjects []string) {
		_, problems := plan.Compute(in)
		for _, p := range problems {
			if p.Code != model.CodeSettingUnused || p.Severity != model.Warning || p.Fix == "" {
				t.Errorf("problem %v, %s", p, p.Severity)
			}
			subjects = append(subjects, p.Subject)
		}
		return subjects
	}
	want := []string{"--eip 1.2.3.4=172.31.0.99", "--nics eth7", "--strict-networks brr", "--strict-networks ours"}
	if diff := cmp.Diff(want, said()); diff != "" {
		t.Errorf("problems of (-want +got):\n%s", diff)
	}
	in.DockerUp = false // it has not told its networks
	if diff := cmp.Diff(want[:2], said()); diff != "" {
		t.Errorf("before Docker is heard, problems of (-want +got):\n%s", diff)
	}
}
