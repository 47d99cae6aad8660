package snat

import (
	"cmp"
	"slices"

	"github.com/eipnet/eipnet/internal/plan"
)

// A pass over 10,000 sources would spend tens of milliseconds on rendering what
// did not change. So the firewall that was applied last is remembered, and of
// two firewalls only what differs is rendered and compared: sources and ports
// in both of them make the same elements, and no two of them share a key.

// delta returns both firewalls without the sources and ports that they have in
// common. It reports false where the whole has to be looked at: when the NICs
// differ, which sources refer to, or when a key is in a list twice. The same with
// levels of cgroups, as chains are not remembered by halves.
func delta(last, next plan.Firewall) (before, after plan.Firewall, ok bool) {
	if last.Mask != next.Mask || last.Cgroups != next.Cgroups || !slices.Equal(last.NICs, next.NICs) || !slices.Equal(levels(last), levels(next)) ||
		!ascending(next.Sources, bySource) || !unique(next.Forwards, byForward) {
		return last, next, false
	}
	before, after = last, next
	before.Sources, after.Sources = differing(last.Sources, next.Sources, bySource)
	before.Forwards, after.Forwards = differing(last.Forwards, next.Forwards, byForward)
	return before, after, true
}

func bySource(a, b plan.Source) int { return a.Addr.Compare(b.Addr) }

func byForward(a, b plan.Forward) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
}

// ascending reports whether each key is greater than the one before.
func ascending[T any](list []T, by func(a, b T) int) bool {
	for i := 1; i < len(list); i++ {
		if by(list[i-1], list[i]) >= 0 {
			return false
		}
	}
	return true
}

// unique reports whether no key is there twice, in whatever order.
func unique[T any](list []T, by func(a, b T) int) bool {
	return ascending(list, by) || ascending(slices.SortedFunc(slices.Values(list), by), by)
}

// differing walks two lists side by side and drops what is in both. In lists
// that are not sorted some of that stays, which only costs time.
func differing[T comparable](a, b []T, by func(a, b T) int) (onlyA, onlyB []T) {
	for len(a) > 0 && len(b) > 0 {
		switch order := by(a[0], b[0]); {
		case a[0] == b[0]:
			a, b = a[1:], b[1:]
		case order < 0:
			onlyA, a = append(onlyA, a[0]), a[1:]
		case order > 0:
			onlyB, b = append(onlyB, b[0]), b[1:]
		default:
			onlyA, onlyB, a, b = append(onlyA, a[0]), append(onlyB, b[0]), a[1:], b[1:]
		}
	}
	return append(onlyA, a...), append(onlyB, b...)
}

// clone copies what Apply's caller may change later.
func clone(fw plan.Firewall) plan.Firewall {
	fw.NICs, fw.Uplinks = slices.Clone(fw.NICs), slices.Clone(fw.Uplinks)
	fw.Locked, fw.Inside, fw.Internal = slices.Clone(fw.Locked), slices.Clone(fw.Inside), slices.Clone(fw.Internal)
	fw.NoForward, fw.Proxied = slices.Clone(fw.NoForward), slices.Clone(fw.Proxied)
	fw.Watched, fw.Ours, fw.Local = slices.Clone(fw.Watched), slices.Clone(fw.Ours), slices.Clone(fw.Local)
	fw.Own, fw.OurSubnets = slices.Clone(fw.Own), slices.Clone(fw.OurSubnets)
	fw.Masqueraded, fw.Apart = slices.Clone(fw.Masqueraded), slices.Clone(fw.Apart)
	fw.Except, fw.ExceptBy = slices.Clone(fw.Except), slices.Clone(fw.ExceptBy)
	fw.Groups = slices.Clone(fw.Groups)
	fw.Sources, fw.Forwards = slices.Clone(fw.Sources), slices.Clone(fw.Forwards)
	return fw
}
