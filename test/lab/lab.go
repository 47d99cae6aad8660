package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Config says what lab to build. The zero Config is one subnet, rp_filter 2 and no engine.
type Config struct {
	Shape Shape
	// Engine is the Docker Engine on the host: "20.10", "26.1" or "28.5"; empty: none. Without an engine
	// the host runs on the machine's own files, with what it writes to /etc, /var/lib, /usr/local and
	// /run thrown away; with one it has the engine's root (see Root).
	Engine string
	// RPFilter is net.ipv4.conf.{all,default,NIC}.rp_filter of the host: "0", "1" or "2" (the default).
	RPFilter string
	// DockerdArgs are more arguments for the engine.
	DockerdArgs []string
	// ExtraAddrs gives NICs more addresses, which the fabric accepts from them and delivers to them. A
	// single address (/32, /128) is enough where the subnet is that of the first one.
	ExtraAddrs map[string][]netip.Prefix
	// Unified gives the host the machine's hierarchy of cgroups version 2 as /sys/fs/cgroup, without those of
	// version 1, as current distributions have it. It has the controllers that the machine has enabled there,
	// which may be none; the host cannot enable any.
	Unified bool
	// Mirror overrides where engines' roots come from: the machine's own apt source by default.
	Mirror string
	// Log gets progress of what takes long; may be nil.
	Log func(format string, args ...any)
}

// Lab is a running lab.
type Lab struct {
	// Site is the Internet: echo services and a client.
	Site *Peer
	// Host is the machine with several NICs.
	Host *Host

	cfg      Config
	nics     []NIC
	dir      string
	lock     *os.File
	fabric   *netNS
	shelf    *netNS // where unplugged NICs are
	sniffers map[string]*Sniffer
	legs     []*Leg
	onHost   []*Peer
	engine   *Process

	closeOnce sync.Once
	closeErr  error
}

// New builds a lab: namespaces, fabric, host, sniffers (proved to see), and the engine if one is asked
// for. On an error everything is undone.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	if cfg.RPFilter == "" {
		cfg.RPFilter = "2"
	}
	if !slices.Contains([]string{"0", "1", "2"}, cfg.RPFilter) {
		return nil, fmt.Errorf("making the lab: rp_filter %q is none of 0, 1, 2", cfg.RPFilter)
	}
	if cfg.Log == nil {
		cfg.Log = func(string, ...any) {}
	}
	nics, err := nicsOf(cfg.Shape, cfg.ExtraAddrs)
	if err != nil {
		return nil, fmt.Errorf("making the lab: %w", err)
	}
	l := &Lab{cfg: cfg, nics: nics, sniffers: map[string]*Sniffer{}}
	if err := l.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("making the lab: %w", err), l.Close())
	}
	return l, nil
}

func (l *Lab) start(ctx context.Context) (err error) {
	root := ""
	if l.cfg.Engine != "" {
		if root, err = EnsureRoot(ctx, l.cfg.Engine, l.cfg.Mirror, l.cfg.Log); err != nil {
			return err
		}
	}
	if err := removeStale(); err != nil {
		return err
	}
	if l.dir, l.lock, err = newDir(); err != nil {
		return err
	}
	if l.Site, err = newPeer("site"); err != nil {
		return err
	}
	if l.fabric, err = newNetNS("fabric"); err != nil {
		return err
	}
	if l.Host, err = startHost(l, root); err != nil {
		return err
	}
	if err := l.wire(ctx); err != nil {
		return err
	}
	if err := l.Site.serve(ctx, SiteAddr, SiteAddr2, SiteAddr6); err != nil {
		return err
	}
	for _, n := range l.nics {
		if l.sniffers[n.Name], err = newSniffer(l, n); err != nil {
			delete(l.sniffers, n.Name)
			return err
		}
	}
	if err := l.Prove(ctx); err != nil {
		return err
	}
	if l.cfg.Engine != "" {
		return l.StartEngine(ctx)
	}
	return nil
}

// Close removes the lab and all that runs in it. It may be called more than once.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() {
		var errs []error
		if l.Host != nil {
			errs = append(errs, l.Host.close())
		}
		for _, s := range l.sniffers {
			errs = append(errs, s.close())
		}
		for _, p := range l.onHost {
			errs = append(errs, p.Close())
		}
		for _, leg := range l.legs {
			errs = append(errs, leg.Peer.Close())
		}
		if l.Site != nil {
			errs = append(errs, l.Site.Close())
		}
		for _, ns := range []*netNS{l.fabric, l.shelf} {
			if ns != nil {
				errs = append(errs, ns.Close())
			}
		}
		if l.dir != "" {
			errs = append(errs, removeCgroups(l.cgroup()), os.RemoveAll(l.dir), l.lock.Close())
		}
		if err := errors.Join(errs...); err != nil {
			l.closeErr = fmt.Errorf("removing the lab: %w", err)
		}
	})
	return l.closeErr
}

// close kills the holder, and with it every process on the host.
func (h *Host) close() error {
	errs := []error{h.stop()}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.active {
		p.ended(context.Background())
	}
	return errors.Join(append(errs, h.ns.Close())...)
}

// Dir is the lab's folder on the machine: logs are in its folder log.
func (l *Lab) Dir() string { return l.dir }

// cgroup is the parent of the engine's cgroups, in every hierarchy.
func (l *Lab) cgroup() string { return "/" + filepath.Base(l.dir) }

// NICs lists the host's NICs, eth0 first.
func (l *Lab) NICs() []NIC { return slices.Clone(l.nics) }

// NIC is one of the host's NICs. Asking for one that is not there is a mistake in the test: it panics.
func (l *Lab) NIC(name string) NIC {
	i := slices.IndexFunc(l.nics, func(n NIC) bool { return n.Name == name })
	if i < 0 {
		panic(fmt.Sprintf("the lab's host has no NIC %q", name))
	}
	return l.nics[i]
}

// EIP is the public IPv4 address of a NIC.
func (l *Lab) EIP(nic string) netip.Addr { return l.NIC(nic).EIP }

// Addr is the private IPv4 address of a NIC.
func (l *Lab) Addr(nic string) netip.Addr { return l.NIC(nic).Addr.Addr() }

// Addr6 is the IPv6 address of a NIC.
func (l *Lab) Addr6(nic string) netip.Addr { return l.NIC(nic).Addr6.Addr() }

// Sniffer is the sniffer of a NIC; it panics like NIC.
func (l *Lab) Sniffer(nic string) *Sniffer { return l.sniffers[l.NIC(nic).Name] }

// Prove shows that every sniffer works.
func (l *Lab) Prove(ctx context.Context) error {
	for _, n := range l.nics {
		if err := l.sniffers[n.Name].Prove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Settle waits until the sniffers have read all that the host has sent so far, and fails when one of
// them lost packets.
func (l *Lab) Settle(ctx context.Context) error {
	for _, n := range l.nics {
		if err := errors.Join(l.sniffers[n.Name].settle(ctx), l.sniffers[n.Name].Err()); err != nil {
			return err
		}
	}
	return nil
}

// Foreign lists what the host sent on any NIC with a source that is not this NIC's, up to now.
func (l *Lab) Foreign(ctx context.Context) ([]Flow, error) {
	if err := l.Settle(ctx); err != nil {
		return nil, err
	}
	var out []Flow
	for _, n := range l.nics {
		out = append(out, l.sniffers[n.Name].Foreign()...)
	}
	return out, nil
}

// ResetSniffers forgets what all sniffers have seen up to now.
func (l *Lab) ResetSniffers(ctx context.Context) error {
	if err := l.Settle(ctx); err != nil {
		return err
	}
	for _, s := range l.sniffers {
		s.Reset()
	}
	return nil
}

// SiteGet fetches a URL from the site: see Peer.Get.
func (l *Lab) SiteGet(ctx context.Context, url string) (string, error) { return l.Site.Get(ctx, url) }

// SiteDial connects from the site: see Peer.Dial.
func (l *Lab) SiteDial(ctx context.Context, network, addr string) (net.Conn, error) {
	return l.Site.Dial(ctx, network, addr)
}

// HostGet fetches a URL from the host by its routing's choice, or bound to an address if from is valid.
func (l *Lab) HostGet(ctx context.Context, from netip.Addr, url string) (string, error) {
	return getIn(ctx, l.Host.ns, from, url)
}

// HostDial connects from the host by its routing's choice, or bound to an address if from is valid.
func (l *Lab) HostDial(ctx context.Context, from netip.Addr, network, addr string) (net.Conn, error) {
	return dialIn(ctx, l.Host.ns, from, network, addr)
}

// InHost runs fn on a thread in the host's network namespace. Sockets that fn opens stay there.
func (l *Lab) InHost(fn func() error) error { return l.Host.ns.Do(fn) }

// InFabric runs fn on a thread in the fabric's network namespace.
func (l *Lab) InFabric(fn func() error) error { return l.fabric.Do(fn) }

// Enter lists how a person enters each namespace while the lab is up.
func (l *Lab) Enter() string {
	var b strings.Builder
	fmt.Fprintf(&b, "host    nsenter -t %d -m -n -p -u -i\n", l.Host.pid)
	fmt.Fprintf(&b, "fabric  nsenter --net=/proc/%d/fd/%d\n", os.Getpid(), l.fabric.fd())
	fmt.Fprintf(&b, "site    nsenter --net=/proc/%d/fd/%d\n", os.Getpid(), l.Site.ns.fd())
	for _, leg := range l.legs {
		fmt.Fprintf(&b, "%-7s nsenter --net=/proc/%d/fd/%d\n", leg.Name, os.Getpid(), leg.ns.fd())
	}
	return b.String()
}
