package events

import "github.com/eipnet/eipnet/internal/model"

// beside reports whether packets leave the host by the network where no hook
// and no rule of ours sees them. A macvlan and an ipvlan send by their parent at
// layer 2; what another plugin does nobody knows.
//
// Internal changes nothing: Docker leaves out the default route then, and what is
// sent to the parent's neighbours leaves by it all the same. Without a parent
// Docker puts the network on a dummy link, and nothing leaves the host.
//
// An overlay gives no default route: the way out is Docker's own bridge
// docker_gwbridge, which is stock and pinned as any other, or another network.
func (n network) beside() bool {
	switch n.Driver {
	case stockDriver, "host", "null", "overlay":
		return false
	case "macvlan", "ipvlan":
		return n.parent != ""
	}
	return !n.Ours()
}

// besides lists the containers on a network that is beside ours.
func (n network) besides(attached map[string]attachment, index index, containers map[string]model.Container) []model.Beside {
	if !n.beside() {
		return nil
	}
	var out []model.Beside
	for key, a := range attached {
		if l, ok := index.find(key, a); ok {
			out = append(out, model.Beside{Container: containers[l.id], NetworkID: n.ID, Network: n.Name, Driver: n.Driver, Labels: n.Labels})
		}
	}
	return out
}
