package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/crash"
	"github.com/eipnet/eipnet/internal/plan"
)

const (
	// ourAlias starts every alias that eipnet gives.
	ourAlias = "eipnet "
	// hostEnd and peerEnd start the names of a pair's ends; the first 11 digits of
	// the endpoint's id follow.
	hostEnd = "eipv"
	peerEnd = "eipc"
)

// Veth is an endpoint's pair of devices.
type Veth struct {
	Host   string // the end on the bridge
	Peer   string // the end that dockerd moves into the container
	Bridge string
	MAC    string // of the peer; empty: the kernel's choice
	MTU    int    // 0: the kernel's default
	Alias  string // of the host end; starts with "eipnet "
}

// AddVeth makes the pair, with the host end on the bridge and up, and the peer
// down in the host's namespace. A pair that is there with the same alias, or
// with a name of ours and no alias yet, is mended, whatever became of its peer;
// another link of that name is an error.
func (h *Host) AddVeth(ctx context.Context, v Veth) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("making veth %s: %w", v.Host, err)
	}
	if !strings.HasPrefix(v.Alias, ourAlias) {
		return fmt.Errorf("making veth %s: the alias %q does not start with %q", v.Host, v.Alias, ourAlias)
	}
	bridge, err := h.handle.LinkByName(v.Bridge)
	if err != nil {
		return fmt.Errorf("making veth %s: finding bridge %s: %w", v.Host, v.Bridge, err)
	}
	master := bridge.Attrs().Index
	old, err := h.handle.LinkByName(v.Host)
	switch {
	case isNotFound(err):
	case err != nil:
		return fmt.Errorf("making veth %s: %w", v.Host, err)
	case isOurVeth(old) && slices.Contains([]string{v.Alias, mendedAlias(v.Host), ""}, old.Attrs().Alias):
		modes, err := h.portModes()
		if err == nil {
			// Whether it is isolated is the next pass's to say.
			mode := modes[old.Attrs().Index]
			_, err = h.mendVeth(old, master, v.Alias, mode, mode.isolated)
		}
		return err
	default:
		return fmt.Errorf("making veth %s: the name is in use by another link", v.Host)
	}

	at := netlink.NewLinkAttrs()
	at.Name, at.MTU, at.MasterIndex, at.Flags = v.Host, v.MTU, master, net.FlagUp
	pair := netlink.NewVeth(at)
	pair.PeerName, pair.PeerMTU = v.Peer, uint32(v.MTU)
	if v.MAC != "" {
		if pair.PeerHardwareAddr, err = net.ParseMAC(v.MAC); err != nil {
			return fmt.Errorf("making veth %s: %w", v.Host, err)
		}
	}
	if err := h.handle.LinkAdd(pair); err != nil {
		return fmt.Errorf("making veth %s: %w", v.Host, err)
	}
	crash.Point("veth " + v.Host)
	// The kernel takes neither of these at creation. Hairpin: with br_netfilter
	// a container's call to its own published address is translated on the
	// bridge already, and has to go back out of the port that it came in by.
	if err := errors.Join(h.handle.LinkSetAlias(pair, v.Alias), h.handle.LinkSetHairpin(pair, true)); err != nil {
		return fmt.Errorf("setting up veth %s: %w", v.Host, errors.Join(err, h.handle.LinkDel(pair)))
	}
	crash.Point("mode of " + v.Host)
	h.log.Debug("veth made", slog.String("link", v.Host), slog.String("bridge", v.Bridge))
	return nil
}

// portMode is how a bridge port is set.
type portMode struct{ hairpin, isolated bool }

// mendVeth makes the host end be on its bridge, in hairpin mode, isolated from
// the bridge's other isolated ports or not, up and named.
func (h *Host) mendVeth(l netlink.Link, master int, alias string, mode portMode, isolated bool) (changed bool, err error) {
	at := l.Attrs()
	moved := at.MasterIndex != master
	for _, step := range []struct {
		what   string
		needed bool
		do     func() error
	}{
		{"naming", at.Alias != alias, func() error { return h.handle.LinkSetAlias(l, alias) }},
		{"putting on its bridge", moved, func() error { return h.handle.LinkSetMasterByIndex(l, master) }},
		{"setting hairpin mode of", moved || !mode.hairpin, func() error { return h.handle.LinkSetHairpin(l, true) }},
		{"setting the isolation of", !moved && mode.isolated != isolated || moved && isolated, func() error { return h.handle.LinkSetIsolated(l, isolated) }},
		{"setting up", at.RawFlags&unix.IFF_UP == 0, func() error { return h.handle.LinkSetUp(l) }},
	} {
		if !step.needed {
			continue
		}
		if err := step.do(); err != nil {
			return changed, fmt.Errorf("%s veth %s: %w", step.what, at.Name, err)
		}
		changed = true
	}
	return changed, nil
}

// portModes tells how bridge ports are set, by index.
func (h *Host) portModes() (map[int]portMode, error) {
	msgs, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.Sockets = h.sockets
		req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	})
	if err != nil {
		return nil, fmt.Errorf("listing bridge ports: %w", err)
	}
	out := make(map[int]portMode)
	for _, m := range msgs {
		l, err := netlink.LinkDeserialize(&unix.NlMsghdr{Type: unix.RTM_NEWLINK}, m)
		if err != nil {
			return nil, fmt.Errorf("reading a bridge port: %w", err)
		}
		if at := l.Attrs(); at.Protinfo != nil {
			out[at.Index] = portMode{at.Protinfo.Hairpin, at.Protinfo.Isolated}
		}
	}
	return out, nil
}

// veths puts the host ends of joined endpoints onto their bridges again: a
// bridge that was deleted comes back without ports. An end that is not there
// belongs to a container that is just stopping.
func (a *applying) veths(want []plan.VethPort) {
	var modes map[int]portMode
	for _, v := range want {
		l, ok := a.t.byName[v.Name]
		if !ok {
			continue
		}
		if !isOurVeth(l) && (l.Type() != "veth" || !hasOurName(v.Name)) {
			a.failLink(v.Name, fmt.Errorf("mending veth %s: the name is in use by another link", v.Name))
			continue
		}
		bridge, ok := a.t.byName[v.Bridge]
		if !ok || !isOurs(bridge) {
			a.failLink(v.Name, fmt.Errorf("mending veth %s: there is no bridge %s of ours", v.Name, v.Bridge))
			continue
		}
		if modes == nil {
			var err error
			if modes, err = a.portModes(); err != nil {
				a.fail(err)
				return
			}
		}
		a.veth(l, bridge, modes[l.Attrs().Index], v.Isolated)
	}
}

func (a *applying) veth(l, bridge netlink.Link, mode portMode, isolated bool) {
	at := l.Attrs()
	alias := at.Alias
	if !strings.HasPrefix(alias, ourAlias) {
		alias = mendedAlias(at.Name)
	}
	changed, err := a.mendVeth(l, bridge.Attrs().Index, alias, mode, isolated)
	if err != nil && !errors.Is(err, syscall.ENODEV) {
		a.failLink(at.Name, err)
	}
	if changed {
		a.did("link " + at.Name)
		a.log.Info("veth mended", slog.String("link", at.Name), slog.String("bridge", bridge.Attrs().Name))
	}
}

// mendedAlias is what a host end without its alias gets: AddVeth knows the
// endpoint's whole id, its name only the beginning.
func mendedAlias(name string) string {
	return ourAlias + "endpoint " + strings.TrimPrefix(name, hostEnd)
}

// isOurVeth reports whether the link is an end of a pair that AddVeth made. A
// host end gets its alias after its creation, and a peer none at all: without
// alias, the name counts.
func isOurVeth(l netlink.Link) bool {
	at := l.Attrs()
	return l.Type() == "veth" && (strings.HasPrefix(at.Alias, ourAlias) || at.Alias == "" && hasOurName(at.Name))
}

var ourName = regexp.MustCompile("^(" + hostEnd + "|" + peerEnd + ")[0-9a-f]{11}$")

func hasOurName(name string) bool { return ourName.MatchString(name) }

// DeleteLink deletes a link of ours; one that is not there is deleted already.
// A link that bears neither our alias nor (veths) our name is refused.
func (h *Host) DeleteLink(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("deleting link %s: %w", name, err)
	}
	l, err := h.handle.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("deleting link %s: %w", name, err)
	}
	at := l.Attrs()
	ours := strings.HasPrefix(at.Alias, ourAlias) || isOurVeth(l)
	if at.Name != name || !ours {
		return fmt.Errorf("deleting link %s: it is not ours", name)
	}
	if err := h.handle.LinkDel(l); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("deleting link %s: %w", name, err)
	}
	crash.Point("deleted " + name)
	h.log.Debug("link deleted", slog.String("link", name))
	return nil
}
