// Command labctl runs the lab by hand: it brings one up and says how to enter it, builds engines' roots,
// and checks that the lab is honest.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/eipnet/eipnet/test/lab"
)

func main() {
	lab.Init()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "labctl:", err)
		os.Exit(1)
	}
}

// options are the flags of all subcommands.
type options struct {
	shape string
	legs  bool
	image bool
	cfg   lab.Config
}

func command() *cobra.Command {
	var o options
	o.cfg.Log = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	root := &cobra.Command{Use: "labctl", Short: "Run eipnet's simulated cloud by hand (root)", SilenceUsage: true, SilenceErrors: true}
	root.PersistentFlags().StringVar(&o.cfg.Mirror, "mirror", "", "where engines' roots come from (default: this machine's apt source)")

	up := &cobra.Command{
		Use: "up", Short: "Bring a lab up and keep it until Ctrl-C", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.up(c.Context()) },
	}
	check := &cobra.Command{
		Use: "check", Short: "Show that sniffers see and that the fabric drops", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.check(c.Context()) },
	}
	rootfs := &cobra.Command{
		Use: "root", Short: "Build an engine's root, and nothing else", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.root(c.Context()) },
	}
	engines := strings.Join(lab.Engines(), ", ")
	for _, c := range []*cobra.Command{up, check} {
		c.Flags().StringVar(&o.shape, "shape", lab.OneSubnet.String(), "subnets of the NICs: one or three")
		c.Flags().StringVar(&o.cfg.RPFilter, "rp-filter", "2", "rp_filter of the host: 0, 1 or 2")
	}
	up.Flags().StringVar(&o.cfg.Engine, "engine", "", "Docker Engine on the host: "+engines)
	up.Flags().BoolVar(&o.legs, "legs", false, "add the VPN leg and the static client")
	up.Flags().BoolVar(&o.cfg.Unified, "unified", false, "give the host cgroups of version 2 only")
	up.Flags().BoolVar(&o.image, "image", true, "with an engine: build the lab's image "+lab.Image)
	rootfs.Flags().StringVar(&o.cfg.Engine, "engine", "", "which: "+engines)
	root.AddCommand(up, check, rootfs)
	return root
}

func (o *options) start(ctx context.Context) (*lab.Lab, error) {
	switch o.shape {
	case lab.OneSubnet.String():
		o.cfg.Shape = lab.OneSubnet
	case lab.ThreeSubnets.String():
		o.cfg.Shape = lab.ThreeSubnets
	default:
		return nil, fmt.Errorf("--shape %q is neither one nor three", o.shape)
	}
	return lab.New(ctx, o.cfg)
}

func (o *options) up(ctx context.Context) (err error) {
	at := time.Now()
	l, err := o.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if o.legs {
		if _, err := l.AddVPNLeg(ctx); err != nil {
			return err
		}
		if _, err := l.AddStaticClient(ctx); err != nil {
			return err
		}
	}
	if o.cfg.Engine != "" && o.image {
		if err := l.BuildImage(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("The lab is up (%s). Ctrl-C removes it.\n\n", time.Since(at).Round(time.Millisecond))
	for _, n := range l.NICs() {
		fmt.Printf("%s  %-15s ↔ %-13s  %s\n", n.Name, n.Addr, n.EIP, n.Addr6)
	}
	fmt.Printf("site  %s, %s, %s: http://%s/ip, tcp and udp :7, dns\n\nTo enter (as root):\n%s", lab.SiteAddr, lab.SiteAddr2, lab.SiteAddr6, lab.SiteAddr, l.Enter())
	if o.cfg.Engine != "" {
		fmt.Printf("\nDOCKER_HOST=%s\n", l.DockerHost())
	}
	fmt.Printf("Logs: %s/log\n", l.Dir())
	<-ctx.Done()
	return o.report(l)
}

// report says what left by a wrong NIC while the lab was up.
func (o *options) report(l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	foreign, err := l.Foreign(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("\n%d flows had another NIC's source:\n", len(foreign))
	for _, f := range foreign {
		fmt.Println(f)
	}
	return nil
}

// check is a quick version of the lab's own tests.
func (o *options) check(ctx context.Context) (err error) {
	l, err := o.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := l.Prove(ctx); err != nil {
		return err
	}
	fmt.Println("ok: the sniffers see what is planted")
	for _, n := range l.NICs() {
		d, err := l.Drops(ctx, n.Name)
		if err != nil {
			return err
		}
		if d.IP4 == 0 || d.IP6 == 0 || d.ARP == 0 {
			return fmt.Errorf("the fabric let a planted packet of %s through: %+v", n.Name, d)
		}
	}
	fmt.Println("ok: the fabric drops what is planted")
	url := "http://" + lab.SiteAddr.String() + "/ip"
	got, err := l.HostGet(ctx, l.Addr("eth0"), url)
	if err != nil {
		return fmt.Errorf("reaching the site from eth0: %w", err)
	}
	if got != l.EIP("eth0").String() {
		return fmt.Errorf("from eth0 the site sees %q: want %s", got, l.EIP("eth0"))
	}
	fmt.Println("ok: the first NIC reaches the site as its public address")
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if got, err := l.HostGet(short, l.Addr("eth1"), url); err == nil {
		return fmt.Errorf("without policy routing the second NIC reaches the site as %s: the lab is not honest", got)
	}
	foreign, err := l.Foreign(ctx)
	if err != nil {
		return err
	}
	if len(foreign) == 0 {
		return errors.New("the sniffers missed the second NIC's address on the first NIC")
	}
	fmt.Println("ok: without policy routing the second NIC does not, and the sniffers say why:", foreign[0])
	return nil
}

func (o *options) root(ctx context.Context) error {
	at := time.Now()
	path, err := lab.EnsureRoot(ctx, o.cfg.Engine, o.cfg.Mirror, o.cfg.Log)
	if err != nil {
		return err
	}
	fmt.Printf("%s (%s)\n", path, time.Since(at).Round(time.Millisecond))
	return nil
}
