package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/crash"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

const groupPrefix = "group:"

// applying is one pass of Apply.
type applying struct {
	*Host
	t       *tables
	prune   bool
	changed bool
	errs    []error
}

// did notes that something was written.
func (a *applying) did(what string) {
	a.changed = true
	a.wrote = append(a.wrote, what)
	crash.Point(what)
}

func (a *applying) fail(err error) { a.errs = append(a.errs, err) }

func (a *applying) failLink(name string, err error) { a.fail(linkError{name, err}) }

// linkError is an error about one link. Its text names the link already.
type linkError struct {
	link string
	err  error
}

func (e linkError) Error() string { return e.err.Error() }
func (e linkError) Unwrap() error { return e.err }

// Subject returns the link's name.
func (e linkError) Subject() string { return e.link }

func (a *applying) forget(key string) {
	if err := a.o.Originals.DeleteOriginal(key); err != nil {
		a.fail(fmt.Errorf("forgetting %s: %w", key, err))
	}
}

// Apply makes devices, interface groups and switches be as asked for. Without
// prune it makes and mends, but removes and puts back nothing. It goes on
// after an error and returns all of them, joined; one about a single link has a
// method Subject that names it. A pass without change writes nothing.
func (h *Host) Apply(ctx context.Context, links plan.Links, sysctls []plan.Sysctl, prune bool) (changed bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t, err := h.readLinks(ctx)
	if err != nil {
		return false, err
	}
	a := &applying{Host: h, t: t, prune: prune}
	a.followRenames()
	a.null(links.Null)
	for _, b := range links.Bridges {
		a.bridge(b)
	}
	if prune {
		a.deleteBridges(links.Bridges)
	}
	a.veths(links.Veths)
	a.groups(links.Grouped)
	a.applySysctls(sysctls)
	return a.changed, errors.Join(a.errs...)
}

// groups puts exactly these NICs into the interface group that rule 32700 looks past.
func (a *applying) groups(want []string) {
	for _, name := range want {
		l, ok := a.t.byName[name]
		if !ok || l.Attrs().Group == model.NICGroup {
			continue // a NIC that is gone is plan's Problem
		}
		if err := a.setOriginal(groupPrefix+name, groupOriginal(l.Attrs().Group, l.Attrs().Index)); err != nil {
			a.fail(fmt.Errorf("remembering the group of %s: %w", name, err))
			continue
		}
		a.setGroup(l, model.NICGroup)
	}
	if !a.prune {
		return
	}
	kept := make(map[string]bool) // they could not be put back
	for _, l := range a.t.links {
		name := l.Attrs().Name
		if l.Attrs().Group != model.NICGroup || slices.Contains(want, name) {
			continue
		}
		old, known := a.original(groupPrefix + name)
		if !known {
			continue // somebody else's group of that number, or the memory was lost
		}
		number, _, _ := strings.Cut(old, " ")
		group, err := strconv.Atoi(number)
		if err != nil {
			a.fail(fmt.Errorf("reading the group that %s had: %w", name, err))
			kept[name] = true
			continue
		}
		kept[name] = !a.setGroup(l, group)
	}
	for _, key := range sorted(a.o.Originals.OriginalKeys()) {
		if name, ok := strings.CutPrefix(key, groupPrefix); ok && !slices.Contains(want, name) && !kept[name] {
			a.forget(key)
		}
	}
}

func (a *applying) setGroup(l netlink.Link, group int) bool {
	if err := a.handle.LinkSetGroup(l, group); err != nil {
		a.failLink(l.Attrs().Name, fmt.Errorf("setting the group of %s to %d: %w", l.Attrs().Name, group, err))
		return false
	}
	a.did("group of " + l.Attrs().Name)
	a.log.Info("interface group set", slog.String("nic", l.Attrs().Name), slog.Int("group", group))
	return true
}

// write does one netlink call on a device of ours.
func (a *applying) write(l netlink.Link, what string, err error) bool {
	if err != nil {
		a.failLink(l.Attrs().Name, fmt.Errorf("%s %s: %w", what, l.Attrs().Name, err))
		return false
	}
	a.did("link " + l.Attrs().Name)
	return true
}

// null keeps the device that leads nowhere: a bridge without ports, up, that
// asks for no neighbour and has no address. Packets routed to it are gone.
func (a *applying) null(want bool) {
	l, there := a.t.byName[model.NullDevice]
	switch {
	case !want && (!there || !a.prune || l.Type() != "bridge"):
		return
	case there && l.Type() != "bridge":
		a.failLink(model.NullDevice, fmt.Errorf("making %s: the name is in use by another link of kind %s", model.NullDevice, l.Type()))
		return
	case !want:
		a.deleteLink(l)
		return
	case !there:
		if l = a.create(model.NullDevice, nullAlias, 0); l == nil {
			return
		}
	}
	for _, port := range a.t.links {
		if there && port.Attrs().MasterIndex == l.Attrs().Index {
			a.write(port, "taking the port off "+model.NullDevice+":", a.handle.LinkSetNoMaster(port))
		}
	}
	at := l.Attrs()
	// IPv6 stays on, else the kernel takes no IPv6 route by the device; but no address comes of it.
	a.switchOff(conf6(at.Name, "disable_ipv6"))
	const none = "1" // IN6_ADDR_GEN_MODE_NONE
	if mode, err := a.readSysctl(conf6(at.Name, "addr_gen_mode")); err == nil && mode != none {
		a.write(l, "switching address generation off on", a.handle.LinkSetIP6AddrGenMode(l, 1))
	}
	if at.RawFlags&unix.IFF_NOARP == 0 {
		a.write(l, "switching ARP off on", a.handle.LinkSetARPOff(l))
	}
	for _, ad := range a.t.addrs[at.Index] {
		a.write(l, "removing address "+ad.IPNet.String()+" of", a.handle.AddrDel(l, &netlink.Addr{IPNet: ad.IPNet}))
	}
	a.alwaysRouted(at.Name)
	a.up(l)
}

// alwaysRouted sees to it that routes by the device count though it has no
// carrier: without ports it never has one, and lock 1 must not depend on
// net.ipv4.conf.default.ignore_routes_with_linkdown.
func (a *applying) alwaysRouted(name string) {
	a.switchOff(conf4(name, "ignore_routes_with_linkdown"))
	a.switchOff(conf6(name, "ignore_routes_with_linkdown"))
}

// switchOff sets a switch of a device of ours to 0; one that is not there is none.
func (a *applying) switchOff(path string) { a.switchTo(path, "0") }

func (a *applying) switchTo(path, value string) {
	now, err := a.readSysctl(path)
	if err != nil || now == value {
		return
	}
	if err := a.writeSysctl(path, value); err != nil {
		a.log.Debug("switch of an own device not set", slog.String("sysctl", path), slog.Any("err", err))
		return
	}
	a.did("sysctl " + path)
}

func (a *applying) up(l netlink.Link) {
	if l.Attrs().RawFlags&unix.IFF_UP == 0 {
		a.write(l, "setting up", a.handle.LinkSetUp(l))
	}
}

func (a *applying) deleteLink(l netlink.Link) {
	name := l.Attrs().Name
	err := a.handle.LinkDel(l)
	if err != nil && !errors.Is(err, syscall.ENODEV) {
		a.failLink(name, fmt.Errorf("deleting link %s: %w", name, err))
		return
	}
	a.did("link " + name)
	a.log.Info("link deleted", slog.String("link", name))
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}
