package main

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/events"
	"github.com/eipnet/eipnet/internal/firewalld"
	"github.com/eipnet/eipnet/internal/host"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/internal/reconcile"
	"github.com/eipnet/eipnet/internal/state"
	"github.com/eipnet/eipnet/snat"
)

// The rooms declare what they need in their own words; these are the joints.

// core is the loop as the driver sees it.
type core struct {
	loop     *reconcile.Loop
	settings plan.Settings
}

func (c core) Sync(ctx context.Context, subjects ...string) error {
	return c.loop.Sync(ctx, subjects...)
}

func (c core) Host(ctx context.Context) (model.Host, error) {
	res, err := c.loop.Last(ctx)
	if err != nil {
		return model.Host{}, err
	}
	return res.Host, nil
}

func (c core) PortError(endpoint string) error {
	res, err := c.loop.Last(context.Background())
	if err != nil {
		return err
	}
	return res.PortErrors[endpoint]
}

func (c core) EIPs() map[netip.Addr]netip.Addr { return c.settings.EIPs }

// veths makes the driver's links through the host.
type veths struct{ *host.Host }

func (v veths) AddVeth(ctx context.Context, w driver.Veth) error {
	return v.Host.AddVeth(ctx, host.Veth{Host: w.Host, Peer: w.Peer, Bridge: w.Bridge, MAC: w.MAC, Alias: w.Alias, MTU: w.MTU})
}

// reservations are the driver's port sockets as the loop sees them.
type reservations struct{ *driver.Reserver }

// Set claims for each port by itself: a container that publishes one host port
// as two of its own keeps the first, as two containers would.
func (r reservations) Set(want []plan.Port) map[plan.Port]error {
	ports := make(map[driver.Claim]plan.Port)
	var claims []driver.Claim
	for _, p := range want {
		f := p.Forward
		c := driver.Claim{Reservation: driver.Reservation{Proto: f.Proto, Addr: f.Addr, Port: f.Port}, Owner: p.Endpoint + " " + f.To.String()}
		if p.Proxy != plan.NoProxy {
			c.Proxy = driver.Proxied{To: f.To, Loopback: p.Proxy == plan.ProxyLoopback}
		}
		ports[c], claims = p, append(claims, c)
	}
	failed := make(map[plan.Port]error)
	for c, err := range r.Reserver.Set(claims) {
		failed[ports[c]] = err
	}
	return failed
}

// forwarding is DOCKER-USER, and firewalld, as the loop sees them.
type forwarding struct {
	*snat.DockerUser
	zones *firewalld.Keeper
}

func (f forwarding) Apply(ctx context.Context, bridges []string) (reconcile.ForwardingOutcome, error) {
	f.zones.Set(bridges)
	out, err := f.DockerUser.Apply(ctx, bridges)
	return reconcile.ForwardingOutcome(out), err
}

// dockerView is the watcher as the loop sees it.
type dockerView struct {
	*events.Watcher
	store   *state.Store
	atStart []model.Problem // the kernel's and the environment's, and what happened to the state file
	lost    *lost
	others  []func() []model.Problem // of host entries' files, and of firewalld
}

func (d dockerView) View() (reconcile.DockerView, bool) {
	v := d.Watcher.View()
	if v == nil {
		return reconcile.DockerView{}, false
	}
	d.lost.look(v, d.store)
	return reconcile.DockerView{
		Containers: v.Containers, Stock: v.Stock, Endpoints: v.Endpoints, Strays: v.Strays, Beside: v.Beside,
		Incomplete: d.lost.any(),
	}, true
}

func (d dockerView) Problems() []model.Problem {
	problems := append(d.Watcher.Problems(), d.atStart...)
	for _, more := range d.others {
		problems = append(problems, more()...)
	}
	problems = append(problems, d.lost.problems()...)
	if view := d.Watcher.View(); view != nil {
		problems = append(problems, networkLabels(view)...)
	}
	return problems
}

// networkLabels reports eipnet networks that bear eip.* labels: Docker tells the
// driver just their options.
func networkLabels(view *events.View) (problems []model.Problem) {
	for _, n := range view.Networks {
		if n.Ours() && len(n.Labels) > 0 {
			problems = append(problems, model.Problem{
				Code: model.CodeNetworkLabel, Severity: model.Failure, Subject: "network " + n.Name,
				Text: "its eip.* labels have no effect: " + strings.Join(slices.Sorted(maps.Keys(n.Labels)), ", "),
				Fix:  "create it again with -o instead of --label",
			})
		}
	}
	return problems
}
