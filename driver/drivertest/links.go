package drivertest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/internal/model"
)

// Links keeps veths in memory.
type Links struct {
	core    *Core
	mu      sync.Mutex
	veths   map[string]driver.Veth
	flushed []netip.Addr
	fail    error
}

// Fail makes DeleteLink return err until it is nil.
func (l *Links) Fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = err
}

// AddVeth adds a pair to a bridge that is there.
func (l *Links) AddVeth(ctx context.Context, v driver.Veth) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(v.Host) > 15 || len(v.Peer) > 15 {
		return errors.New("numerical result out of range")
	}
	if !slices.Contains(l.core.Bridges(), v.Bridge) {
		return fmt.Errorf("no such bridge %s", v.Bridge)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.veths[v.Host] = v
	return nil
}

// DeleteLink deletes a pair by its host side.
func (l *Links) DeleteLink(ctx context.Context, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := errors.Join(ctx.Err(), l.fail); err != nil {
		return err
	}
	delete(l.veths, name)
	return nil
}

// FlushConntrack notes the addresses.
func (l *Links) FlushConntrack(ctx context.Context, addrs []netip.Addr) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushed = append(l.flushed, addrs...)
	return 0, ctx.Err()
}

// Veths lists the pairs by name.
func (l *Links) Veths() []driver.Veth {
	l.mu.Lock()
	defer l.mu.Unlock()
	return list(l.veths, func(v driver.Veth) driver.Veth { return v })
}

// Flushed lists the addresses whose connections were forgotten, in order.
func (l *Links) Flushed() []netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.flushed)
}

// Labels is Docker's API.
type Labels struct {
	mu         sync.Mutex
	up, hang   bool
	asked      int
	containers map[string]model.Container
}

// Set says what Docker is like: its event stream up or not, its API hanging or not.
func (l *Labels) Set(up, hang bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up, l.hang = up, hang
}

// Add makes a container known, under an endpoint.
func (l *Labels) Add(endpointID string, c model.Container) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.Known = true
	l.containers[endpointID] = c
}

// Asked counts the questions so far.
func (l *Labels) Asked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

// Up is what Set said.
func (l *Labels) Up() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

// Container finds what Add added.
func (l *Labels) Container(ctx context.Context, _, endpointID string) (model.Container, error) {
	l.mu.Lock()
	hang := l.hang
	l.asked++
	c, ok := l.containers[endpointID]
	l.mu.Unlock()
	if hang {
		<-ctx.Done()
		return model.Container{}, context.Cause(ctx)
	}
	if !ok {
		return model.Container{}, errors.New("no such endpoint")
	}
	return c, nil
}
