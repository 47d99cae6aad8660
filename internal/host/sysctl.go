package host

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

const (
	ipForward    = "net/ipv4/ip_forward"
	bootID       = "kernel/random/boot_id"
	sysctlPrefix = "sysctl:"
	arrow        = "→" // between the old and the new value of a remembered sysctl
)

func sysctlKey(path string) string { return sysctlPrefix + path }

// conf4 returns the path of an IPv4 switch of a link. Names with dots
// (VLANs: eth0.100) are why paths are written with slashes everywhere.
func conf4(link, name string) string { return "net/ipv4/conf/" + link + "/" + name }

func conf6(link, name string) string { return "net/ipv6/conf/" + link + "/" + name }

// readSysctls fills in the switches that plan and driver ask about.
func (h *Host) readSysctls(t *tables, out *model.Host) {
	paths := []string{ipForward, conf4("all", "rp_filter"), plan.Forwarding6, "net/ipv4/ip_local_port_range", "net/ipv4/ip_local_reserved_ports"}
	for _, p := range []string{model.SysctlBridged4, model.SysctlBridged6} {
		if h.exists(p) {
			paths = append(paths, p)
		}
	}
	var links []string
	for _, n := range out.NICs {
		links = append(links, n.Name)
	}
	for _, l := range t.links {
		if isOurs(l) {
			links = append(links, l.Attrs().Name)
		}
	}
	for _, l := range links {
		paths = append(paths, conf4(l, "rp_filter"), conf4(l, "arp_ignore"), conf4(l, "arp_announce"))
	}
	for _, p := range paths {
		v, err := h.readSysctl(p)
		if err != nil {
			h.log.Debug("sysctl not read", slog.String("sysctl", p), slog.Any("err", err))
			continue
		}
		out.Sysctls[p] = v
	}
}

func (h *Host) exists(path string) bool {
	_, err := os.Stat(filepath.Join(h.o.ProcSys, path))
	return err == nil
}

func (h *Host) readSysctl(path string) (string, error) {
	if !filepath.IsLocal(path) {
		return "", fmt.Errorf("reading sysctl %q: no path below %s", path, h.o.ProcSys)
	}
	b, err := os.ReadFile(filepath.Join(h.o.ProcSys, path))
	if err != nil {
		return "", fmt.Errorf("reading sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// writeSysctl writes by /proc/sys. Where that is read-only (containers), it
// writes by the host's own below Root, and IPv4 switches of links by netlink
// where that is not there either.
func (h *Host) writeSysctl(path, value string) error {
	if !filepath.IsLocal(path) {
		return fmt.Errorf("writing sysctl %q: no path below %s", path, h.o.ProcSys)
	}
	err := writeTo(filepath.Join(h.o.ProcSys, path), value)
	if readOnly(err) && h.o.Root != "/" {
		if hostErr := writeTo(filepath.Join(h.o.Root, "proc/sys", path), value); !errors.Is(hostErr, fs.ErrNotExist) {
			err = hostErr
		}
	}
	if readOnly(err) {
		if id, link, ok := inetConf(path); ok {
			if nlErr := h.writeInetConf(link, id, value); nlErr != nil {
				return fmt.Errorf("writing sysctl %s: %w", path, errors.Join(err, nlErr))
			}
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("writing sysctl %s=%s: %w", path, value, err)
	}
	return nil
}

func writeTo(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func readOnly(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)
}

// inetConfIDs are IPV4_DEVCONF_… of linux/ip.h.
var inetConfIDs = map[string]int{
	"forwarding": 1, "rp_filter": 8, "arp_announce": 18, "arp_ignore": 19,
	"accept_local": 23, "src_valid_mark": 24, "route_localnet": 26, "ignore_routes_with_linkdown": 29,
}

// inetConf splits net/ipv4/conf/eth1/rp_filter, where netlink knows the switch.
func inetConf(path string) (id int, link string, ok bool) {
	parts := strings.Split(path, "/")
	if len(parts) != 5 || strings.Join(parts[:3], "/") != "net/ipv4/conf" || parts[3] == "all" || parts[3] == "default" {
		return 0, "", false
	}
	id, ok = inetConfIDs[parts[4]]
	return id, parts[3], ok
}

// writeInetConf sends RTM_SETLINK { IFLA_AF_SPEC { AF_INET { IFLA_INET_CONF { id: value } } } }.
func (h *Host) writeInetConf(link string, id int, value string) error {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return fmt.Errorf("reading the value: %w", err)
	}
	l, err := h.handle.LinkByName(link)
	if err != nil {
		return fmt.Errorf("finding link %s: %w", link, err)
	}
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.Sockets = h.sockets
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(l.Attrs().Index)
	req.AddData(msg)
	const inetConfAttr = 1 // IFLA_INET_CONF
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	spec.AddRtAttr(unix.AF_INET|unix.NLA_F_NESTED, nil).
		AddRtAttr(inetConfAttr|unix.NLA_F_NESTED, nil).
		AddRtAttr(id, nl.Uint32Attr(uint32(n)))
	req.AddData(spec)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("setting it by netlink: %w", err)
	}
	return nil
}

// vanished reports whether the error says that the device of a switch is gone.
func vanished(path string, err error) bool {
	parts := strings.Split(path, "/")
	ofDevice := len(parts) == 5 && parts[2] == "conf" && parts[3] != "all" && parts[3] != "default"
	return ofDevice && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || isNotFound(err))
}

// applySysctls switches what has one of the values in From, and puts back what
// is no longer asked for, where nobody has changed it since. A device that is
// gone by now has no switches.
func (a *applying) applySysctls(want []plan.Sysctl) {
	failed := false
	for _, s := range forwardingLast(want, func(s plan.Sysctl) string { return s.Path }) {
		if s.Path == plan.Forwarding6 && failed {
			continue
		}
		if err := a.setSysctl(s); err != nil {
			a.fail(err)
			failed = true
		}
	}
	if a.prune {
		a.restoreSysctls(want)
	}
}

// forwardingLast brings IPv6 forwarding behind all else.
func forwardingLast[T any](list []T, path func(T) string) []T {
	is := func(t T) bool { return path(t) == plan.Forwarding6 }
	rest := slices.DeleteFunc(slices.Clone(list), is)
	if i := slices.IndexFunc(list, is); i >= 0 {
		rest = append(rest, list[i])
	}
	return rest
}

func (a *applying) setSysctl(s plan.Sysctl) error {
	h := a.Host
	now, err := h.readSysctl(s.Path)
	if vanished(s.Path, err) {
		return nil
	}
	if err != nil || now == s.Value || !slices.Contains(s.From, now) {
		return err
	}
	_, known := h.original(sysctlKey(s.Path))
	if err := h.setOriginal(sysctlKey(s.Path), now+arrow+s.Value); err != nil {
		return fmt.Errorf("remembering sysctl %s: %w", s.Path, err)
	}
	if err := h.writeSysctl(s.Path, s.Value); err != nil {
		if !known {
			a.forget(sysctlKey(s.Path))
		}
		if vanished(s.Path, err) {
			return nil
		}
		return err
	}
	a.did("sysctl " + s.Path)
	a.log.Info("sysctl set", slog.String("sysctl", s.Path), slog.String("old", now), slog.String("new", s.Value))
	return nil
}

func (a *applying) restoreSysctls(want []plan.Sysctl) {
	keys := sorted(a.o.Originals.OriginalKeys())
	slices.Reverse(keys)
	keys = forwardingLast(keys, func(k string) string { return strings.TrimPrefix(k, sysctlPrefix) })
	for _, key := range slices.Backward(keys) {
		path, ok := strings.CutPrefix(key, sysctlPrefix)
		if !ok || slices.ContainsFunc(want, func(s plan.Sysctl) bool { return s.Path == path }) {
			continue
		}
		if err := a.restoreSysctl(path); err != nil {
			a.fail(err)
			if path == plan.Forwarding6 {
				return
			}
			continue
		}
		a.forget(key)
	}
}

func (a *applying) restoreSysctl(path string) error {
	h := a.Host
	value, _ := h.original(sysctlKey(path))
	old, ours, _ := strings.Cut(value, arrow)
	now, err := h.readSysctl(path)
	if vanished(path, err) {
		return nil
	}
	if err != nil || now != ours { // somebody's own choice by now
		return err
	}
	err = h.writeSysctl(path, old)
	if err != nil && !vanished(path, err) {
		return err
	}
	if err == nil {
		a.did("sysctl " + path)
		a.log.Info("sysctl put back", slog.String("sysctl", path), slog.String("old", now), slog.String("new", old))
	}
	return nil
}

func isNotFound(err error) bool {
	_, missing := errors.AsType[netlink.LinkNotFoundError](err)
	return missing
}
