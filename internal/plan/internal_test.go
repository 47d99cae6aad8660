package plan_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// The bridges of internal networks are known, Docker's own that nobody asks for, too.
func TestInternalBridges(t *testing.T) {
	in := snapshot()
	in.Networks = append(in.Networks,
		model.Network{ID: "inner", Bridge: "eip_inner", Internal: true, Subnet4: prefix("172.21.0.0/16"), Gateway4: addr("172.21.0.1")},
		model.Network{ID: "stock", Bridge: "br-inner", Stock: true, Internal: true, Subnet4: prefix("172.22.0.0/16")},
		model.Network{ID: "none", Stock: true, Internal: true})
	d, _ := plan.Compute(in)
	if diff := cmp.Diff([]string{"br-inner", "eip_inner"}, d.Firewall.Internal); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
