package plan

import (
	"slices"
	"strings"

	"github.com/eipnet/eipnet/internal/model"
)

// elsewhere looks whether Docker's networks are on this host at all: they are
// not where we are in a container with a network of its own, or Docker is in a
// virtual machine, another namespace, or on another machine.
func (c *compute) elsewhere() {
	if !c.in.DockerUp || len(c.in.Host.Links) == 0 {
		return
	}
	var bridges []string
	for _, n := range c.in.Networks {
		if !n.Stock || n.Bridge == "" {
			continue
		}
		if slices.Contains(c.in.Host.Links, n.Bridge) {
			return
		}
		bridges = append(bridges, n.Bridge)
	}
	if len(bridges) == 0 {
		return
	}
	slices.Sort(bridges)
	c.problem(model.CodeElsewhere, model.Failure, "docker",
		"none of the bridges of docker's networks ("+strings.Join(bridges, ", ")+") is on this host: docker runs elsewhere, or eipnet is not in the host's network",
		"run eipnet on the machine of that docker, and in a container with --network host")
}
