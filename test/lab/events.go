package lab

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
)

// SetCarrier takes the carrier of a NIC away, as a broken cable or hypervisor does, or gives it back.
// The host's side stays administratively up.
func (l *Lab) SetCarrier(nic string, up bool) error {
	n := l.NIC(nic)
	return l.fabric.links(func(h *netlink.Handle) error {
		if up {
			// Down took the port's addresses and neighbours with it.
			if err := l.wirePort(h, n); err != nil {
				return fmt.Errorf("giving %s its carrier: %w", nic, err)
			}
			return nil
		}
		port, err := h.LinkByName(portOf(nic))
		if err == nil {
			err = h.LinkSetDown(port)
		}
		if err != nil {
			return fmt.Errorf("taking the carrier of %s: %w", nic, err)
		}
		return nil
	})
}

// SetGateway makes the router on a NIC's port deaf, as one that died: it answers neither ARP nor ND and
// forwards nothing that the NIC sends; or lets it hear again. The link stays up. Sniffers and source
// check are ahead of that and go on.
func (l *Lab) SetGateway(ctx context.Context, nic string, alive bool) error {
	table := "deaf-" + l.NIC(nic).Name
	rules := fmt.Sprintf("table netdev %s\ndelete table netdev %s\n", table, table)
	if !alive {
		rules += fmt.Sprintf("table netdev %s {\n\tchain deaf {\n\t\ttype filter hook ingress device %q priority 10; policy drop;\n\t}\n}\n", table, portOf(nic))
	}
	if err := l.nft(ctx, rules); err != nil {
		return fmt.Errorf("the gateway of %s: %w", nic, err)
	}
	return nil
}

// Unplug takes a NIC away from the host, as detaching it in the cloud does: the link is gone, with its
// addresses and routes.
func (l *Lab) Unplug(nic string) error {
	n := l.NIC(nic)
	if l.shelf == nil {
		shelf, err := newNetNS("shelf")
		if err != nil {
			return err
		}
		l.shelf = shelf
	}
	if err := move(l.Host.ns, l.shelf, n.Name); err != nil {
		return fmt.Errorf("unplugging %s: %w", nic, err)
	}
	return nil
}

// Plug gives an unplugged NIC back and configures it as at the start.
func (l *Lab) Plug(nic string) error {
	n := l.NIC(nic)
	if l.shelf == nil {
		return fmt.Errorf("plugging %s: it is not unplugged", nic)
	}
	if err := move(l.shelf, l.Host.ns, n.Name); err != nil {
		return fmt.Errorf("plugging %s: %w", nic, err)
	}
	return l.Host.ns.links(func(h *netlink.Handle) error { return l.configureNIC(h, n) })
}

// move moves a link to another namespace.
func move(from, to *netNS, name string) error {
	return from.links(func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding %s in %s: %w", name, from.name, err)
		}
		return h.LinkSetNsFd(link, to.fd())
	})
}
