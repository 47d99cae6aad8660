package route

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/crash"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

const (
	// maxDumps bounds the retries of a listing that was interrupted by changes.
	maxDumps = 20
	// maxRounds bounds list-and-write rounds of one Apply. Deleting a rule or
	// route can hit a like one (the kernel matches only the fields that are
	// given), so after every delete the kernel is looked at again.
	maxRounds = 4
)

// ErrDevice marks, for errors.Is, the error of a route whose device is missing
// or down. The null device is not meant: without its route lock 1 is open.
var ErrDevice = errors.New("the route's device is missing or down")

// deviceError is an [ErrDevice] with its own words.
type deviceError struct{ err error }

func (e deviceError) Error() string        { return e.err.Error() }
func (e deviceError) Unwrap() error        { return e.err }
func (e deviceError) Is(target error) bool { return target == ErrDevice }

// Options for [New].
type Options struct {
	Log *slog.Logger // required
}

// Manager owns the rules and routes. Its methods may be called from several
// goroutines; it works in the network namespace of the thread that made it.
type Manager struct {
	log     *slog.Logger
	mu      sync.Mutex
	closed  bool
	wrote   []string // see Wrote
	handle  *netlink.Handle
	routes  *netlink.Handle          // listing of routes only: the kernel filters
	sockets map[int]*nl.SocketHandle // rules, which the library cannot read back
}

// New opens netlink in the present network namespace.
func New(o Options) (*Manager, error) {
	if o.Log == nil {
		return nil, errors.New("opening the route manager: no logger given")
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink for routes: %w", err)
	}
	routes, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("opening netlink for route lists: %w", err)
	}
	// Kernels before 4.20 send everything; the library then filters, too.
	if err := routes.SetStrictCheck(true); err != nil {
		o.Log.Debug("kernel filters no route lists", slog.Any("err", err))
	}
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		routes.Close()
		return nil, fmt.Errorf("opening netlink for rules: %w", err)
	}
	return &Manager{
		log: o.Log, handle: h, routes: routes,
		sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}},
	}, nil
}

// Close releases the sockets. Rules and routes stay. Closing again does nothing.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	m.handle.Close()
	m.routes.Close()
	for _, s := range m.sockets {
		s.Close()
	}
}

// Apply makes our rules and routes be exactly r, or, without prune, adds what
// is missing, removes nothing, and changes only routes of a NIC's own table that
// lead by that NIC otherwise than they should (its gateway changed, say). It goes on after an
// error and returns all of them, joined. One about a single route whose device
// is missing or down is an [ErrDevice]; each of the joined ones has to be asked.
//
// The order keeps a half-done pass safe: routes are added before the rules
// that look them up and deleted after them, and lock 1 is the first rule to
// come and the last to go.
func (m *Manager) Apply(ctx context.Context, r plan.Routing, prune bool) (changed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := wanted{rules: canonicalRules(r.Rules), routes: canonicalRoutes(r.Routes)}
	for range maxRounds {
		if err := ctx.Err(); err != nil {
			return changed, fmt.Errorf("applying rules and routes: %w", err)
		}
		again, wrote, roundErr := m.round(w, prune)
		changed, err = changed || wrote, roundErr
		if !again {
			break
		}
	}
	return changed, err
}

// Wrote names the rules and routes that were added or deleted since it was last asked.
func (m *Manager) Wrote() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	wrote := m.wrote
	m.wrote = nil
	return wrote
}

// Remove deletes all rules and routes that are ours.
func (m *Manager) Remove(ctx context.Context) error {
	_, err := m.Apply(ctx, plan.Routing{}, true)
	return err
}

// wanted is a plan.Routing in the form in which the kernel lists it, in the order of adding.
type wanted struct {
	rules  []plan.Rule
	routes []plan.Route
}

// round lists and writes once. again asks for another look at the kernel.
func (m *Manager) round(w wanted, prune bool) (again, wrote bool, err error) {
	devs, errs := m.devices(w.routes)
	haveRules, err := m.listRules()
	if err != nil {
		return false, false, fmt.Errorf("listing rules: %w", err)
	}
	haveRoutes, err := m.listRoutes(devs.names)
	if err != nil {
		return false, false, fmt.Errorf("listing routes: %w", err)
	}
	p := pass{Manager: m, prune: prune, errs: errs}
	p.addRoutes(w.routes, haveRoutes, devs.indexes)
	p.addRules(w.rules, haveRules)
	if prune {
		p.deleteRules(w.rules, haveRules)
		if p.replaced {
			// What was replaced is gone already: look again.
			if haveRoutes, err = m.listRoutes(devs.names); err != nil {
				return false, p.wrote, fmt.Errorf("listing routes: %w", errors.Join(append(p.errs, err)...))
			}
		}
		p.deleteRoutes(w.routes, haveRoutes)
	}
	return p.again, p.wrote, errors.Join(p.errs...)
}

// devices are the links that routes name.
type devices struct {
	indexes map[string]int
	names   map[int]string
}

func (m *Manager) devices(routes []plan.Route) (devices, []error) {
	d := devices{make(map[string]int), make(map[int]string)}
	var errs []error
	for _, r := range routes {
		if _, asked := d.indexes[r.Dev]; asked || r.Dev == "" {
			continue
		}
		d.indexes[r.Dev] = 0
		l, err := m.handle.LinkByName(r.Dev)
		if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
			continue // reported with each route
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("looking up link %s: %w", r.Dev, err))
			continue
		}
		if l.Attrs().Name == r.Dev { // an alternative name is none
			d.indexes[r.Dev], d.names[l.Attrs().Index] = l.Attrs().Index, r.Dev
		}
	}
	return d, errs
}

// pass is the writing half of a round.
type pass struct {
	*Manager
	prune    bool
	wrote    bool
	replaced bool
	again    bool
	errs     []error
}

func (p *pass) did(what string) {
	p.wrote = true
	p.Manager.wrote = append(p.Manager.wrote, what)
	crash.Point(what)
}

func (p *pass) fail(err error) { p.errs = append(p.errs, err) }

func (p *pass) failDevice(r plan.Route, err error) {
	if r.Dev != model.NullDevice {
		err = deviceError{err}
	}
	p.fail(err)
}

func (p *pass) addRoutes(want []plan.Route, have []kernelRoute, indexes map[string]int) {
	there, slots := make(map[plan.Route]bool), make(map[slot][]plan.Route)
	for _, k := range have {
		slots[slotOf(k.route)] = append(slots[slotOf(k.route)], k.route)
		there[k.route] = there[k.route] || k.exact
	}
	for _, r := range want {
		if there[r] {
			continue
		}
		if !r.Unreachable && indexes[r.Dev] == 0 {
			p.failDevice(r, fmt.Errorf("adding route %s: there is no link %s", describeRoute(r), r.Dev))
			continue
		}
		old := slots[slotOf(r)]
		ours := len(old) > 0
		if ours && !p.prune && !sameWay(r, old) {
			continue // differs from ours: the first full pass mends it
		}
		write, op := p.handle.RouteAdd, "adding"
		if ours {
			write, op = p.handle.RouteReplace, "replacing"
		}
		err := write(toKernelRoute(r, indexes[r.Dev]))
		switch {
		case errors.Is(err, syscall.EEXIST):
			p.fail(fmt.Errorf("adding route %s: a route that is not ours is in its place", describeRoute(r)))
		case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENETDOWN):
			p.failDevice(r, fmt.Errorf("%s route %s: %w", op, describeRoute(r), err))
		case err != nil:
			p.fail(fmt.Errorf("%s route %s: %w", op, describeRoute(r), err))
		default:
			p.did("route " + describeRoute(r))
			p.replaced = p.replaced || ours
			p.log.Info("route added", slog.String("route", describeRoute(r)))
		}
	}
}

// sameWay reports whether the old routes in a route's place are of the same NIC's
// own table and lead by it. Another NIC's may be what runs still depends on.
func sameWay(r plan.Route, old []plan.Route) bool {
	return ofNIC(r.Table) && r.Dev != "" && !slices.ContainsFunc(old, func(o plan.Route) bool { return o.Dev != r.Dev })
}

func (p *pass) addRules(want []plan.Rule, have []kernelRule) {
	there := make(map[plan.Rule]bool)
	for _, k := range have {
		there[k.rule] = there[k.rule] || k.exact
	}
	for _, r := range want {
		if there[r] {
			continue
		}
		switch err := p.writeRule(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, encodeRule(r)...); {
		case errors.Is(err, syscall.EEXIST):
			// Either somebody else's that does the same, or an old goto of ours
			// (the kernel does not compare targets), which is about to be deleted.
			p.log.Debug("rule exists already", slog.String("rule", describeRule(r)))
		case err != nil:
			p.fail(fmt.Errorf("adding rule %s: %w", describeRule(r), err))
		default:
			p.did("rule " + describeRule(r))
			p.log.Info("rule added", slog.String("rule", describeRule(r)))
		}
	}
}

// deleteRules deletes in the reverse order of adding, so that lock 1 goes last.
func (p *pass) deleteRules(want []plan.Rule, have []kernelRule) {
	keep := make(map[plan.Rule]bool, len(want))
	for _, r := range want {
		keep[r] = true
	}
	slices.SortStableFunc(have, func(a, b kernelRule) int { return compareRules(b.rule, a.rule) })
	for _, k := range have {
		if k.exact && keep[k.rule] {
			continue
		}
		p.again = true
		switch err := p.writeRule(unix.RTM_DELRULE, 0, k.body...); {
		case errors.Is(err, syscall.ENOENT):
		case err != nil:
			p.fail(fmt.Errorf("deleting rule %s: %w", describeRule(k.rule), err))
		default:
			p.did("rule " + describeRule(k.rule))
			p.log.Info("rule deleted", slog.String("rule", describeRule(k.rule)))
		}
	}
}

func (p *pass) deleteRoutes(want []plan.Route, have []kernelRoute) {
	keep := make(map[plan.Route]bool, len(want))
	for _, r := range want {
		keep[r] = true
	}
	slices.SortStableFunc(have, func(a, b kernelRoute) int { return compareRoutes(b.route, a.route) })
	for _, k := range have {
		if k.exact && keep[k.route] {
			continue
		}
		p.again = true
		old := k.kernel
		old.Flags &= int(netlink.FLAG_ONLINK) // states such as linkdown are no criteria
		switch err := p.handle.RouteDel(&old); {
		case errors.Is(err, syscall.ESRCH), errors.Is(err, syscall.ENODEV):
		case err != nil:
			p.fail(fmt.Errorf("deleting route %s: %w", describeRoute(k.route), err))
		default:
			p.did("route " + describeRoute(k.route))
			p.log.Info("route deleted", slog.String("route", describeRoute(k.route)))
		}
	}
}

// compareRules is the order of adding: the goto's target and lock 1 first,
// then upwards, so that the inside table is looked up before any NIC's, and
// the host's specific routes before the NIC's default.
func compareRules(a, b plan.Rule) int {
	late := func(r plan.Rule) int {
		if r.Priority >= model.PriorityLocked && r.Priority <= model.PriorityLast {
			return -r.Priority
		}
		return r.Priority
	}
	return cmp.Or(
		cmp.Compare(late(a), late(b)),
		cmp.Compare(a.Family, b.Family),
		a.From.Compare(b.From),
		cmp.Compare(a.Iif, b.Iif),
		cmp.Compare(a.Mark, b.Mark),
		cmp.Compare(a.Table, b.Table),
		cmp.Compare(a.Target, b.Target),
	)
}

// compareRoutes is the order of adding: backstops first, default routes last.
func compareRoutes(a, b plan.Route) int {
	backstop := func(r plan.Route) int {
		if r.Unreachable {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(backstop(a), backstop(b)),
		cmp.Compare(b.Dst.Bits(), a.Dst.Bits()),
		cmp.Compare(a.Family, b.Family),
		cmp.Compare(a.Table, b.Table),
		a.Dst.Compare(b.Dst),
		cmp.Compare(a.Metric, b.Metric),
		cmp.Compare(a.Dev, b.Dev),
	)
}

// dump repeats a listing that changes interrupted: it may lack entries.
func dump[T any](list func() (T, error)) (T, error) {
	for n := 1; ; n++ {
		got, err := list()
		if n == maxDumps || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return got, err
		}
	}
}
