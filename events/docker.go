package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	dockernet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/eipnet/eipnet/internal/model"
)

// engine is what the Watcher asks of Docker. A value of it is good for one
// connection: the API version is agreed upon once, and another engine may
// answer at the same socket later.
type engine interface {
	identify(ctx context.Context) (identity, error)
	networks(ctx context.Context) ([]network, error)
	// inspect tells of a network and lists its endpoints, by container id or, for
	// one that is just being joined, by "ep-" and its own id. Errors: errGone, errRefused.
	inspect(ctx context.Context, networkID string) (network, map[string]attachment, error)
	// containers lists containers, running or not: everyones, or those with one of the values.
	containers(ctx context.Context, by filter, values ...string) ([]listed, error)
	// imageLabels are the eip.* labels that an image brings along. Error: errGone.
	imageLabels(ctx context.Context, imageID string) (map[string]string, error)
	// driverOptions are the eip.* options of a container's endpoints, by endpoint
	// id. Docker does not answer before the container's start is over.
	driverOptions(ctx context.Context, containerID string) (map[string]map[string]string, error)
	// events calls started when the stream is connected and then each for every
	// event since that time, until the stream breaks or ctx ends.
	events(ctx context.Context, since time.Time, started func(), each func(event)) error
	close() error
}

var (
	errGone    = errors.New("not there")
	errRefused = errors.New("refused") // answered with an error, about this object alone
)

type identity struct {
	version, api string
	platform     string // of engine and host, as they call themselves
	security     []string
}

type network struct {
	Network
	subnets  []model.Subnet
	internal bool
	parent   string // the host's link that a macvlan or ipvlan is on
}

type attachment struct {
	endpointID, name string
	addr4, addr6     netip.Addr
	mac              string
}

// filter is by what containers are chosen.
type filter string

const (
	everyone filter = ""
	byName   filter = "name"
	byID     filter = "id"
)

type listed struct {
	id, name string
	image    string            // id; empty as long as only events told of the container
	labels   map[string]string // eip.* only
	created  bool              // never started
	running  bool              // its start is over
	stopped  bool
	mode     string // HostConfig.NetworkMode
	networks map[string]membership
}

// membership is what a container says of one of its networks, which it knows by
// the name, or by what was given to docker run as the name.
type membership struct {
	networkID string            // empty or of an earlier network as long as it has not been started
	options   map[string]string // eip.* only; no engine up to 29 lists any: see driverOptions
}

type event struct {
	kind, action, id string
	attributes       map[string]string
}

// What is asked of the event stream. Docker sends no health checks and execs
// then, which come by the thousand.
var (
	eventKinds   = []string{"container", "network"}
	eventActions = []string{"create", "start", "die", "destroy", "rename", "connect", "disconnect", "remove"}
)

type docker struct {
	cli  *client.Client
	http transport
}

func dial(host string) (engine, error) {
	t := newTransport(strings.TrimPrefix(host, "unix://"))
	cli, err := client.New(client.WithHost(host), client.WithHTTPClient(&http.Client{Transport: t, CheckRedirect: client.CheckRedirect}))
	if err != nil {
		return nil, fmt.Errorf("making a client for %s: %w", host, err)
	}
	return docker{cli, t}, nil
}

func (d docker) close() error {
	d.http.CloseIdleConnections() // the client closes those of its own transport only
	return d.cli.Close()
}

func (d docker) identify(ctx context.Context) (identity, error) {
	v, err := d.cli.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return identity{}, fmt.Errorf("asking for /version: %w", err)
	}
	i, err := d.cli.Info(ctx, client.InfoOptions{})
	if err != nil {
		return identity{}, fmt.Errorf("asking for /info: %w", err)
	}
	platform := []string{v.Platform.Name, i.Info.OperatingSystem}
	for _, c := range v.Components {
		platform = append(platform, c.Name)
	}
	return identity{
		version:  v.Version,
		api:      v.APIVersion,
		platform: strings.Join(platform, " · "),
		security: i.Info.SecurityOptions,
	}, nil
}

func (d docker) networks(ctx context.Context) ([]network, error) {
	r, err := d.cli.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing networks: %w", err)
	}
	out := make([]network, 0, len(r.Items))
	for _, n := range r.Items {
		out = append(out, toNetwork(n.Network))
	}
	return out, nil
}

func toNetwork(n dockernet.Network) network {
	out := network{
		Network: Network{
			ID:     n.ID,
			Name:   n.Name,
			Driver: n.Driver,
			Labels: model.EipOnly(n.Labels),
			Bridge: bridgeOf(n.ID, n.Driver, n.Options),
		},
		internal: n.Internal,
		parent:   n.Options["parent"],
	}
	for _, c := range n.IPAM.Config {
		out.subnets = append(out.subnets, model.Subnet{Prefix: c.Subnet, Gateway: c.Gateway})
	}
	return out
}

func (d docker) inspect(ctx context.Context, networkID string) (network, map[string]attachment, error) {
	r, err := d.cli.NetworkInspect(ctx, networkID, client.NetworkInspectOptions{})
	switch {
	case cerrdefs.IsNotFound(err):
		return network{}, nil, fmt.Errorf("network %s: %w", model.ShortID(networkID), errGone)
	case cerrdefs.IsInternal(err), cerrdefs.IsPermissionDenied(err), cerrdefs.IsUnavailable(err),
		cerrdefs.IsInvalidArgument(err), cerrdefs.IsNotImplemented(err), cerrdefs.IsUnauthorized(err):
		return network{}, nil, fmt.Errorf("inspecting network %s: %w: %w", model.ShortID(networkID), errRefused, err)
	case err != nil:
		return network{}, nil, fmt.Errorf("inspecting network %s: %w", model.ShortID(networkID), err)
	}
	out := make(map[string]attachment, len(r.Network.Containers))
	for key, c := range r.Network.Containers {
		out[key] = attachment{
			endpointID: c.EndpointID,
			name:       c.Name,
			addr4:      c.IPv4Address.Addr(),
			addr6:      c.IPv6Address.Addr(),
			mac:        c.MacAddress.String(),
		}
	}
	return toNetwork(r.Network.Network), out, nil
}

func (d docker) containers(ctx context.Context, by filter, values ...string) ([]listed, error) {
	o := client.ContainerListOptions{All: true, Filters: make(client.Filters)}
	for _, v := range values {
		if by == byName {
			// A regular expression to Docker, unanchored; names are stored as "/name".
			v = "^/?" + regexp.QuoteMeta(v) + "$"
		}
		o.Filters.Add(string(by), v)
	}
	r, err := d.cli.ContainerList(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	out := make([]listed, 0, len(r.Items))
	for _, c := range r.Items {
		out = append(out, toListed(c))
	}
	return out, nil
}

func toListed(c container.Summary) listed {
	l := listed{
		id:      c.ID,
		name:    ownName(c.Names),
		image:   c.ImageID,
		labels:  model.EipOnly(c.Labels),
		created: c.State == container.StateCreated,
		running: c.State == container.StateRunning || c.State == container.StatePaused,
		stopped: c.State == container.StateExited || c.State == container.StateDead || c.State == container.StateRemoving,
		mode:    c.HostConfig.NetworkMode,
	}
	if c.NetworkSettings == nil {
		return l
	}
	l.networks = make(map[string]membership, len(c.NetworkSettings.Networks))
	for name, n := range c.NetworkSettings.Networks {
		if n != nil {
			l.networks[name] = membership{networkID: n.NetworkID, options: model.EipOnly(n.DriverOpts)}
		}
	}
	return l
}

func (d docker) imageLabels(ctx context.Context, imageID string) (map[string]string, error) {
	r, err := d.cli.ImageInspect(ctx, imageID)
	switch {
	case cerrdefs.IsNotFound(err):
		return nil, fmt.Errorf("image %s: %w", imageID, errGone)
	case err != nil:
		return nil, fmt.Errorf("inspecting image %s: %w", imageID, err)
	case r.Config == nil:
		return nil, nil
	}
	return model.EipOnly(r.Config.Labels), nil
}

func (d docker) driverOptions(ctx context.Context, containerID string) (map[string]map[string]string, error) {
	r, err := d.cli.ContainerInspect(ctx, containerID, client.ContainerInspectOptions{})
	if err != nil {
		return nil, fmt.Errorf("inspecting container %s: %w", model.ShortID(containerID), err)
	}
	out := make(map[string]map[string]string)
	if r.Container.NetworkSettings == nil {
		return out, nil
	}
	for _, n := range r.Container.NetworkSettings.Networks {
		if n != nil && n.EndpointID != "" {
			out[n.EndpointID] = model.EipOnly(n.DriverOpts)
		}
	}
	return out, nil
}

func (d docker) events(ctx context.Context, since time.Time, started func(), each func(event)) error {
	r := d.cli.Events(ctx, client.EventsListOptions{
		// The answer starts just before the subscription counts, so ask from before.
		Since:   fmt.Sprintf("%d.%09d", since.Unix(), since.Nanosecond()),
		Filters: make(client.Filters).Add("type", eventKinds...).Add("event", eventActions...),
	})
	select {
	case err := <-r.Err:
		return broken(err)
	default:
	}
	started()
	for {
		select {
		case err := <-r.Err:
			return broken(err)
		case m := <-r.Messages:
			each(toEvent(m))
		}
	}
}

func broken(err error) error {
	if err == nil {
		err = io.EOF
	}
	return fmt.Errorf("reading /events: %w", err)
}

func toEvent(m events.Message) event {
	return event{kind: string(m.Type), action: string(m.Action), id: m.Actor.ID, attributes: m.Actor.Attributes}
}

// ownName picks a container's name: the others are "/container/alias" of legacy links.
func ownName(names []string) string {
	i := slices.IndexFunc(names, func(n string) bool { return strings.Count(n, "/") <= 1 })
	if i < 0 {
		return ""
	}
	return strings.TrimPrefix(names[i], "/")
}

// bridgeOf names the link of a network that Docker's bridge driver made.
func bridgeOf(id, driver string, options map[string]string) string {
	switch {
	case driver != stockDriver:
		return ""
	case options["com.docker.network.bridge.name"] != "":
		return options["com.docker.network.bridge.name"]
	case options["com.docker.network.bridge.default_bridge"] == "true":
		return "docker0"
	}
	return "br-" + model.ShortID(id)
}
