package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/eipnet/eipnet/internal/health"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/plan"
)

// serveFlags are the flags as given, serveOptions what they mean.
type serveFlags struct {
	dockerHost, apiSocket, stateDir, hostRoot, hostDir  string
	pluginSockets, nics, except, gateways, eips, strict []string
	hostReplies, mask, logFormat, logLevel, programs    string
	probe                                               []string
	failback                                            string
	collectAfter, probeInterval                         time.Duration
	shareTables                                         bool
}

type serveOptions struct {
	dockerHost, apiSocket, stateDir, hostRoot string
	hostDir                                   string // of files with host entries
	pluginSockets                             []string

	settings plan.Settings
	included []string // links that are NICs, and managed though nothing names them
	excluded []string // links that are none
	gateways map[string]netip.Addr
	programs netip.Prefix // subnet of eipnet exec; zero: a free one
	log      *slog.Logger

	collectAfter  time.Duration
	shareTables   bool
	probeTargets  []health.Target
	probeInterval time.Duration
	stay          bool // where a container has failed over to

	unknown []model.Problem // variables that are no setting
}

// Where things are, unless flags say otherwise.
const (
	defaultDockerHost   = "unix:///var/run/docker.sock"
	defaultPluginSocket = "/run/docker/plugins/eipnet.sock"
	defaultStateDir     = "/var/lib/eipnet"
	defaultHostDir      = "/etc/eipnet/host.d"
)

// linkLocal are the destinations that always follow the host's routing:
// metadata services answer on them, by whichever NIC the host uses.
const linkLocal = "169.254.0.0/16"

func (f *serveFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.dockerHost, "docker-host", defaultDockerHost, "Docker's API, a local unix `URL`")
	fs.StringSliceVar(&f.pluginSockets, "plugin-socket", []string{defaultPluginSocket}, "unix `paths` where Docker finds the driver; a file's name is the driver's name")
	fs.StringVar(&f.apiSocket, "api-socket", defaultAPISocket, "unix `path` of the API that the other commands read")
	fs.DurationVar(&f.collectAfter, "collect-after", 15*time.Second, "forget containers and networks that docker's lists have lacked for this long")
	fs.StringVar(&f.programs, "programs-subnet", "", "`subnet` for programs that eipnet exec runs; without it, one to which the host has no route")
	fs.StringVar(&f.hostDir, "host-dir", defaultHostDir, "`directory` of files that declare addresses for programs of the host, as eipnet host add does; it is watched")
	fs.StringSliceVar(&f.probe, "probe", nil, "`targets` (ADDRESS or ADDRESS:PORT) of which one has to answer through a NIC that has fallbacks or is one; beside its gateway")
	fs.DurationVar(&f.probeInterval, "probe-interval", health.DefaultInterval, "time between two questions to the gateways (and targets) of such NICs")
	fs.StringVar(&f.failback, "failback", "auto", "`auto|never`: whether a container goes back when its own NIC works again")
	f.registerKernel(fs)
}

// registerKernel adds the flags about what is written into the kernel, and the log.
func (f *serveFlags) registerKernel(fs *pflag.FlagSet) {
	f.dockerHost, f.failback, f.probeInterval = cmp.Or(f.dockerHost, defaultDockerHost), cmp.Or(f.failback, "auto"), cmp.Or(f.probeInterval, health.DefaultInterval)
	fs.StringVar(&f.stateDir, "state-dir", defaultStateDir, "`directory` that remembers networks and endpoints")
	fs.StringVar(&f.hostRoot, "host-root", "/", "`directory` where the host's own files are, for eipnet in a container")
	fs.StringSliceVar(&f.nics, "nics", nil, "`NICs` to manage though nothing names them, as names or globs; with ! in front: never a NIC")
	fs.StringSliceVar(&f.gateways, "gateway", nil, "next hop of a NIC, as `NIC=ADDRESS`, where it cannot be found out")
	fs.StringSliceVar(&f.eips, "eip", nil, "which private address a public one belongs to, as `PUBLIC=PRIVATE`")
	fs.StringSliceVar(&f.except, "except", []string{linkLocal}, "destination `prefixes` that follow the host's routing; an empty value excepts nothing")
	fs.StringSliceVar(&f.strict, "strict-networks", nil, "stock `networks`, by name or id, of which nothing leaves that is neither pinned nor known as unpinned, though they bear no eip.* label")
	fs.StringVar(&f.hostReplies, "host-replies", string(plan.RepliesSecondary), "`secondary` or off: on managed secondary NICs, host services answer by the NIC that they were asked on")
	fs.StringVar(&f.mask, "mark-mask", model.DefaultMask.String(), "the eight bits of packet marks that are eipnet's, as a `mask`")
	fs.BoolVar(&f.shareTables, "share-tables", false, "let others change eipnet's nftables tables, as kernels before 6.9 do anyway; what they change is put back")
	fs.StringVar(&f.logFormat, "log-format", "text", "`text|json`")
	fs.StringVar(&f.logLevel, "log-level", "info", "`debug|info|warn|error`")
}

func (f *serveFlags) options() (serveOptions, error) {
	o := serveOptions{
		collectAfter: f.collectAfter, shareTables: f.shareTables, dockerHost: f.dockerHost, apiSocket: f.apiSocket, stateDir: f.stateDir, hostRoot: f.hostRoot, hostDir: f.hostDir, pluginSockets: f.pluginSockets,
		gateways: make(map[string]netip.Addr),
		settings: plan.Settings{StrictNetworks: f.strict, HostReplies: plan.HostReplies(f.hostReplies), EIPs: make(map[netip.Addr]netip.Addr)},
	}
	if !strings.HasPrefix(f.dockerHost, "unix://") {
		return o, fmt.Errorf("--docker-host %q: want a local engine, as unix:///var/run/docker.sock; eipnet changes the network of the host it runs on", f.dockerHost)
	}
	if r := o.settings.HostReplies; r != plan.RepliesSecondary && r != plan.RepliesOff {
		return o, fmt.Errorf("--host-replies %q: want secondary or off", r)
	}
	if f.failback != "auto" && f.failback != "never" {
		return o, fmt.Errorf("--failback %q: want auto or never", f.failback)
	}
	o.stay, o.probeInterval = f.failback == "never", f.probeInterval
	if o.probeInterval < 100*time.Millisecond || o.probeInterval > time.Minute {
		return o, fmt.Errorf("--probe-interval %v: want 100ms to 1m", o.probeInterval)
	}
	for _, s := range f.probe {
		target, err := health.ParseTarget(s)
		if err != nil {
			return o, fmt.Errorf("--probe: %w", err)
		}
		o.probeTargets = append(o.probeTargets, target)
	}
	mask, err := strconv.ParseUint(f.mask, 0, 32)
	if err != nil {
		return o, fmt.Errorf("--mark-mask %q: want a number such as %v", f.mask, model.DefaultMask)
	}
	o.settings.Mask = model.Mask(mask)
	if err := o.settings.Mask.Validate(); err != nil {
		return o, fmt.Errorf("--mark-mask: %w", err)
	}
	for _, s := range f.nics {
		if name, not := strings.CutPrefix(s, "!"); not {
			o.excluded = append(o.excluded, name)
		} else {
			o.included = append(o.included, s)
		}
	}
	for _, s := range f.except {
		if s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return o, fmt.Errorf("--except %q: want a prefix, as 10.0.0.0/8", s)
		}
		o.settings.Except = append(o.settings.Except, p.Masked())
	}
	if f.programs != "" {
		p, err := netip.ParsePrefix(f.programs)
		if err != nil || !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 29 {
			return o, fmt.Errorf("--programs-subnet %q: want an IPv4 prefix from /8 to /29, as 10.231.0.0/20", f.programs)
		}
		o.programs = p.Masked()
	}
	for _, s := range f.gateways {
		nic, value, _ := strings.Cut(s, "=")
		a, err := netip.ParseAddr(value)
		if err != nil || nic == "" {
			return o, fmt.Errorf("--gateway %q: want NIC=ADDRESS, as eth1=172.31.0.1", s)
		}
		o.gateways[nic] = a
	}
	for _, s := range f.eips {
		public, private, _ := strings.Cut(s, "=")
		pub, err1 := netip.ParseAddr(public)
		priv, err2 := netip.ParseAddr(private)
		if err1 != nil || err2 != nil {
			return o, fmt.Errorf("--eip %q: want PUBLIC=PRIVATE, as 119.26.38.75=172.31.0.14", s)
		}
		o.settings.EIPs[pub] = priv
	}
	o.log, err = newLogger(f.logFormat, f.logLevel)
	return o, err
}

func newLogger(format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", format)
}
