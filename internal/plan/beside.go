package plan

import (
	"fmt"

	"github.com/eipnet/eipnet/internal/model"
)

// beside tells of containers about which something was said, by whichever way,
// and that have a network of which our rules see nothing. Which of its networks
// the default route takes is Docker's choice, and it changes with each one; so
// it does not matter whether there is a network of ours as well.
func (c *compute) beside() {
	if len(c.in.Beside) == 0 {
		return
	}
	said := make(map[string]bool) // containers with an endpoint that we see
	for i, e := range c.in.Endpoints {
		if p := c.pins[i]; p.State != StateReleased && e.Container.ID != "" {
			said[e.Container.ID] = said[e.Container.ID] || p.State == StateBlocked || !p.Selector.IsZero()
		}
	}
	for _, b := range c.in.Beside {
		asked, both := said[b.Container.ID]
		_, rebound := c.rebinds[b.Container.ID]
		// Not known: it has labels, and its image cannot be read.
		if !asked && !rebound && b.Container.Known && len(b.Container.Labels) == 0 && len(b.Labels) == 0 {
			continue
		}
		fix := "docker network disconnect " + b.Network + " " + b.Container.Name + ", or do not pin it"
		if !both {
			fix = "put it on a bridge or eipnet network instead, or do not pin it"
		}
		c.problem(model.CodeBesidePin, model.Failure, b.Container.Name,
			fmt.Sprintf("network %s of driver %s is beyond its pin: what it sends there passes no rule of eipnet's, and may leave by any NIC", b.Network, b.Driver), fix)
	}
}
