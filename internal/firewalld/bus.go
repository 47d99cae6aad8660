package firewalld

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

// firewalld.dbus(5) has the names.
const (
	busName    = "org.fedoraproject.FirewallD1"
	objectPath = "/org/fedoraproject/FirewallD1"
	configPath = objectPath + "/config"

	ownerChanged = "org.freedesktop.DBus.NameOwnerChanged"
)

// bus is firewalld behind D-Bus.
type bus struct {
	conn      *dbus.Conn
	news      chan struct{}
	forwarder sync.WaitGroup
	cancel    context.CancelFunc // of the connection
}

// connect returns nil where there is no bus. It takes no longer than patience.
func connect(ctx context.Context, path string) (z zones, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(patience, cancel)
	defer func() {
		if late.Stop(); z == nil {
			cancel()
		}
	}()
	conn, err := dbus.Connect("unix:path="+dbus.EscapeBusAddressValue(path), dbus.WithContext(ctx))
	if errors.Is(err, syscall.ECONNREFUSED) { // a socket that nobody listens at
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to D-Bus at %s: %w", path, err)
	}
	b := &bus{conn: conn, news: make(chan struct{}, 1), cancel: cancel}
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchInterface(busName), dbus.WithMatchMember("Reloaded")},
		{dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, busName)},
	} {
		if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
			return nil, errors.Join(fmt.Errorf("subscribing to firewalld's reloads: %w", err), conn.Close())
		}
	}
	b.forwarder.Go(func() {
		defer close(b.news)
		for s := range signals { // closed with the connection
			if s.Name != busName+".Reloaded" && s.Name != ownerChanged {
				continue
			}
			select {
			case b.news <- struct{}{}:
			default:
			}
		}
	})
	return b, nil
}

func (b *bus) running(ctx context.Context) (up bool, err error) {
	err = b.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, busName).Store(&up)
	return up, err
}

// call calls a method of an interface below firewalld's name.
func (b *bus) call(ctx context.Context, path dbus.ObjectPath, method string, args ...any) *dbus.Call {
	return b.conn.Object(busName, path).CallWithContext(ctx, busName+"."+method, dbus.FlagNoAutoStart, args...)
}

func (b *bus) names(ctx context.Context) (all []string, err error) {
	err = b.call(ctx, objectPath, "zone.getZones").Store(&all)
	return all, err
}

func (b *bus) zoneOf(ctx context.Context, iface string) (zone string, err error) {
	err = b.call(ctx, objectPath, "zone.getZoneOfInterface", iface).Store(&zone)
	return zone, err
}

func (b *bus) configured(ctx context.Context, iface string) (zone string, err error) {
	err = b.call(ctx, configPath, "config.getZoneOfInterface", iface).Store(&zone)
	return zone, err
}

func (b *bus) add(ctx context.Context, zone, iface string) error {
	return b.call(ctx, objectPath, "zone.addInterface", zone, iface).Err
}

func (b *bus) remove(ctx context.Context, zone, iface string) error {
	return b.call(ctx, objectPath, "zone.removeInterface", zone, iface).Err
}

func (b *bus) changes() <-chan struct{} { return b.news }

func (b *bus) close() {
	_ = b.conn.Close()
	b.cancel()
	b.forwarder.Wait()
}
