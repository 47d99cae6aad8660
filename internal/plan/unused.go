package plan

import (
	"fmt"
	"slices"

	"github.com/eipnet/eipnet/internal/model"
)

// unused tells of settings that match nothing on this host. A NIC may be
// plugged in later, and a network be made: so it is no error of the start.
func (c *compute) unused() {
	tell := func(setting, text, fix string) {
		c.problem(model.CodeSettingUnused, model.Warning, setting, text, fix)
	}
	const fix = "correct it, or attach the NIC"
	for _, name := range c.in.Host.Unmatched {
		tell("--nics "+name, "no NIC of this host has this name; NICs of this host: "+c.in.Host.NICList(), fix)
	}
	for public, private := range c.in.Settings.EIPs {
		if _, ok := c.in.Host.NICWith(private); !ok {
			tell(fmt.Sprintf("--eip %v=%v", public, private), fmt.Sprintf("%v is no address of a NIC of this host; NICs of this host: %s", private, c.in.Host.NICList()), fix)
		}
	}
	if !c.in.DockerUp {
		return
	}
	for _, name := range c.in.Settings.StrictNetworks {
		if !slices.ContainsFunc(c.in.Networks, func(n model.Network) bool { return n.Stock && (n.Name == name || n.ID == name) }) {
			tell("--strict-networks "+name, "docker has no bridge network of this name or id", "correct it, or create the network; those of driver eipnet are strict without it")
		}
	}
}
