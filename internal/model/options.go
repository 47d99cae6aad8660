package model

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Prefix starts the name of every option and label of ours.
const Prefix = "eip."

// Keys of options and labels.
const (
	KeyNIC      = "eip.nic"
	KeyIP       = "eip.ip"
	KeyPublic   = "eip.public"
	KeyMAC      = "eip.mac"
	KeyIP6      = "eip.ip6"
	KeyFallback = "eip.fallback"
	KeyExcept   = "eip.except"
	// Of networks only.
	KeyAllow  = "eip.allow"
	KeyLock   = "eip.lock"
	KeyStrict = "eip.strict"
)

// acceptedForms is what every refusal of an option shows: all keys with their forms.
const acceptedForms = "accepted: eip.nic=eth1, eip.ip=172.31.0.14, eip.public=119.26.38.75, eip.mac=02:42:ac:1f:00:0e (exactly one of these four); " +
	"beside it eip.ip6=2001:db8::14, eip.fallback=hold|host|eth2,eth3, eip.except=10.0.0.0/8,192.168.0.0/16"

// networkForms is what a network may say on top.
const networkForms = "; a network also eip.allow=eth1,eth2, eip.lock=true, eip.strict=false"

// SelectorKind says by what a Selector names its NIC.
type SelectorKind string

// The selector kinds, named as their keys.
const (
	ByNIC    SelectorKind = KeyNIC
	ByIP     SelectorKind = KeyIP
	ByPublic SelectorKind = KeyPublic
	ByMAC    SelectorKind = KeyMAC
)

// Selector is how a person names a NIC. The zero Selector names none.
type Selector struct {
	Kind SelectorKind
	Name string     // ByNIC, ByMAC
	Addr netip.Addr // ByIP, ByPublic
}

// IsZero reports whether the selector names nothing.
func (s Selector) IsZero() bool { return s == Selector{} }

// String renders the selector as it is written in a label.
func (s Selector) String() string {
	switch {
	case s.IsZero():
		return ""
	case s.Addr.IsValid():
		return string(s.Kind) + "=" + s.Addr.String()
	}
	return string(s.Kind) + "=" + s.Name
}

// PinOptions is what one level (endpoint option, label, network option) says.
type PinOptions struct {
	Selector Selector
	IP6      netip.Addr // which of the NIC's IPv6 addresses; zero: its first
	Fallback Fallback
	// Except are destinations that follow the host's main routing; nil: not said.
	Except []netip.Prefix
}

// NetworkOptions is what a network says: defaults for its containers, and a
// ceiling for what labels and endpoint options may say.
type NetworkOptions struct {
	PinOptions
	// Allow are the NICs that containers may be pinned to; nil: any.
	Allow []string
	// Lock: containers may say nothing that differs from the network.
	Lock bool
	// Loose: a stock network that bears eip.* labels, and yet lets pass what
	// is not pinned or known (eip.strict=false).
	Loose bool
}

// IsEipKey reports whether an option or label key is one of ours to judge.
func IsEipKey(key string) bool { return strings.HasPrefix(strings.ToLower(key), Prefix) }

// EipOnly returns the eip.* entries of a map, nil if there are none.
func EipOnly(m map[string]string) map[string]string {
	var out map[string]string
	for k, v := range m {
		if IsEipKey(k) {
			if out == nil {
				out = make(map[string]string)
			}
			out[k] = v
		}
	}
	return out
}

// ParsePinOptions reads the eip.* entries of one level. Every unknown key,
// malformed value and pair of selectors is an error that names it and shows the
// accepted forms. Whether the NIC exists is not judged here.
//
// Docker's CLI lower-cases `--network name=…,driver-opt=…`, so keys and NIC
// names are compared without case (names by [Selector] users).
func ParsePinOptions(m map[string]string) (PinOptions, error) {
	var o PinOptions
	err := parse(m, o.set)
	if err == nil {
		err = o.check()
	}
	if err != nil {
		return PinOptions{}, fmt.Errorf("%w; %s", err, acceptedForms)
	}
	return o, nil
}

// check refuses what means nothing by itself.
func (o PinOptions) check() error {
	if o.IP6.IsValid() && o.Selector.IsZero() {
		return fmt.Errorf("%s=%v says which address of a NIC, and no NIC is named beside it", KeyIP6, o.IP6)
	}
	return nil
}

// ParseNetworkOptions reads the eip.* entries of a network, as
// [ParsePinOptions] does those of a container.
func ParseNetworkOptions(m map[string]string) (NetworkOptions, error) {
	var o NetworkOptions
	err := parse(m, o.set)
	if err == nil {
		err = o.check()
	}
	if err != nil {
		return NetworkOptions{}, fmt.Errorf("%w; %s%s", err, acceptedForms, networkForms)
	}
	return o, nil
}

// parse sets every entry, in the order of the keys, and joins the errors.
func parse(m map[string]string, set func(key, value string) error) error {
	var errs []error
	for _, k := range slices.Sorted(maps.Keys(m)) {
		value := strings.TrimSpace(m[k])
		if value == "" {
			errs = append(errs, fmt.Errorf("%s has no value", k))
			continue
		}
		if err := set(strings.ToLower(k), value); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (o *NetworkOptions) set(key, value string) error {
	var err error
	switch key {
	case KeyAllow:
		for name := range strings.SplitSeq(value, ",") {
			name = strings.TrimSpace(name)
			if !IsLinkName(name) {
				return fmt.Errorf("%s=%q: %q is no interface name", key, value, name)
			}
			o.Allow = append(o.Allow, name)
		}
	case KeyLock:
		if o.Lock, err = strconv.ParseBool(value); err != nil {
			return fmt.Errorf("%s=%q is neither true nor false", key, value)
		}
	case KeyStrict:
		strict, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%s=%q is neither true nor false", key, value)
		}
		o.Loose = !strict
	default:
		return o.PinOptions.set(key, value)
	}
	return nil
}

// IsLinkName reports whether the kernel takes it for a link's name. It leaves out
// what the kernel, iptables or a list would read as more than a name: %d counts
// up, and + is a wildcard.
func IsLinkName(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:,%+", r) })
}

func (o *PinOptions) set(key, value string) error {
	switch key {
	case KeyNIC:
		if !IsLinkName(value) {
			return fmt.Errorf("%s=%q is no interface name", key, value)
		}
		return o.selector(Selector{Kind: ByNIC, Name: value})
	case KeyMAC:
		mac, err := net.ParseMAC(value)
		if err != nil || len(mac) != 6 {
			return fmt.Errorf("%s=%q is no MAC address", key, value)
		}
		return o.selector(Selector{Kind: ByMAC, Name: mac.String()})
	case KeyIP, KeyPublic:
		addr, err := netip.ParseAddr(value)
		if err != nil || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
			return fmt.Errorf("%s=%q is no IP address", key, value)
		}
		return o.selector(Selector{Kind: SelectorKind(key), Addr: addr.Unmap()})
	case KeyIP6:
		addr, err := netip.ParseAddr(value)
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return fmt.Errorf("%s=%q is no IPv6 address", key, value)
		}
		o.IP6 = addr
	case KeyFallback:
		f, err := parseFallback(value)
		if err != nil {
			return err
		}
		o.Fallback = f
	case KeyExcept:
		for s := range strings.SplitSeq(value, ",") {
			p, err := parsePrefix(strings.TrimSpace(s))
			if err != nil {
				return fmt.Errorf("%s=%q: %q is no prefix", key, value, s)
			}
			o.Except = append(o.Except, p)
		}
	default:
		return fmt.Errorf("unknown option %s", key)
	}
	return nil
}

// parsePrefix reads a prefix, or an address as the prefix of just itself.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err
}

func (o *PinOptions) selector(s Selector) error {
	if !o.Selector.IsZero() {
		return fmt.Errorf("%v and %v both say which NIC: leave one of them out", o.Selector, s)
	}
	o.Selector = s
	return nil
}

// Merge combines levels, most specific first. The selector and the address
// that belongs to it override as one group, fallback and exceptions each alone.
func Merge(levels ...PinOptions) PinOptions {
	var out PinOptions
	for _, l := range levels {
		if out.Selector.IsZero() && !l.Selector.IsZero() {
			out.Selector, out.IP6 = l.Selector, l.IP6
		}
		if out.Fallback == "" {
			out.Fallback = l.Fallback
		}
		if out.Except == nil {
			out.Except = l.Except
		}
	}
	return out
}
