package plan_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// TestElsewhere: a Docker none of whose bridges is here is on another host, or
// we are in a container's network. Where there is one, or nothing to tell by, there is no problem.
func TestElsewhere(t *testing.T) {
	docker0 := model.Network{ID: "d0", Stock: true, Bridge: "docker0", Subnet4: prefix("172.17.0.0/16")}
	other := model.Network{ID: "d1", Stock: true, Bridge: "br-d1", Subnet4: prefix("172.18.0.0/16")}
	for _, test := range []struct {
		name  string
		links []string
		stock []model.Network
		away  bool // Docker has not answered
		want  string
	}{
		{"all here", []string{"br-d1", "docker0", "eth0"}, []model.Network{docker0, other}, false, ""},
		{"one here", []string{"docker0", "eth0"}, []model.Network{docker0, other}, false, ""},
		{"none here", []string{"eth0", "lo"}, []model.Network{docker0, other}, false, "br-d1, docker0"},
		{"none here, and Docker is only remembered", []string{"eth0"}, []model.Network{docker0}, true, ""},
		{"no stock network", []string{"eth0"}, nil, false, ""},
		{"networks without a bridge", []string{"eth0"}, []model.Network{{ID: "m", Stock: true}}, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := snapshot()
			in.Host.Links, in.DockerUp = test.links, !test.away
			in.Networks = append(in.Networks, test.stock...)
			_, problems := plan.Compute(in)
			i := slices.IndexFunc(problems, func(p model.Problem) bool { return p.Code == model.CodeElsewhere })
			switch {
			case test.want == "" && i >= 0:
				t.Errorf("problem %v", problems[i])
			case test.want != "" && (i < 0 || !strings.Contains(problems[i].Text, test.want)):
				t.Errorf("problems %v, want one that names %s", problems, test.want)
			}
		})
	}
}
