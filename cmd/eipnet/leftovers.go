package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/events"
	"github.com/eipnet/eipnet/internal/host"
	"github.com/eipnet/eipnet/internal/model"
	"github.com/eipnet/eipnet/internal/state"
	"github.com/eipnet/eipnet/snat"
)

// dockerPatience bounds the wait for Docker's list.
const dockerPatience = 5 * time.Second

// memory is what the state file says, for cleanup.
type memory struct {
	originals host.Originals
	networks  []model.Network // of eipnet's own
	// lost: there is none, or nothing in it: where anything of ours is found, it
	// is not known what the host was like.
	lost  bool
	close func()
}

// recall opens the state file. Where there is none, none is made; for a dry
// run a copy is read, as a daemon may have it and nothing is to be changed.
func recall(o cleanupOptions) (*memory, error) {
	path := filepath.Join(o.stateDir, "state.db")
	m := &memory{originals: &host.MemoryOriginals{}, lost: true, close: func() {}}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	open := state.Open
	if o.dryRun {
		open = state.Copy
	}
	store, damaged, err := open(path, o.log)
	if err != nil {
		return nil, fmt.Errorf("cleaning up: %w", err)
	}
	if damaged != nil {
		fmt.Fprintf(os.Stderr, "eipnet: %v\n", damaged)
	}
	m.originals, m.lost = store, store.Fresh()
	for _, n := range store.Networks() {
		if !n.Stock {
			m.networks = append(m.networks, n)
		}
	}
	m.close = func() {
		if err := store.Close(); err != nil {
			fmt.Fprintf(os.Stderr, "eipnet: %v\n", err)
		}
	}
	return m, nil
}

// daemonRuns returns an error that names the daemon, if one runs: who has the
// state file, answers at a socket of ours, or owns a table. Where that cannot be
// found out, the error says so.
func daemonRuns(o cleanupOptions) error {
	if pid := state.Holder(filepath.Join(o.stateDir, "state.db")); pid != 0 {
		return fmt.Errorf("the daemon runs (process %d)", pid)
	}
	for _, path := range append([]string{o.apiSocket}, o.pluginSockets...) {
		if pid, answers := listener(path); answers {
			return fmt.Errorf("the daemon runs (process %d answers at %s)", pid, path)
		}
	}
	tables, err := snat.NewTables(0)
	if err != nil {
		return err
	}
	list, err := tables.List()
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(list, func(t snat.Table) bool { return t.Owner != 0 }); i >= 0 {
		return fmt.Errorf("a daemon runs (netlink port %d, as a rule its process id, owns %v)", list[i].Owner, list[i])
	}
	return nil
}

// listener tells which process answers at a unix socket.
func listener(path string) (pid int, answers bool) {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return 0, false
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, true
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid, true
}

// stillUsed names what would break or leave by another way: networks of ours,
// and running containers that are pinned. Where Docker does not answer, what we
// and the kernel remember counts.
func stillUsed(ctx context.Context, o cleanupOptions, m *memory) []string {
	used := make(map[string]bool)
	if v := lookAtDocker(ctx, o); v != nil {
		for _, n := range v.Networks {
			if n.Ours() {
				used["network "+n.Name] = true
			}
		}
		for _, e := range v.Endpoints {
			if len(e.Container.Labels) > 0 || len(v.Networks[e.NetworkID].Labels) > 0 {
				used["container "+e.Container.Name] = true
			}
		}
		return slices.Sorted(maps.Keys(used))
	}
	for _, n := range m.networks {
		used["network "+n.Bridge+" (docker does not answer)"] = true
	}
	if tables, err := snat.NewTables(0); err == nil {
		pinned, _ := tables.Pinned()
		for _, a := range pinned {
			used["pinned address "+a.String()+" (docker does not answer)"] = true
		}
	}
	return slices.Sorted(maps.Keys(used))
}

// lookAtDocker returns what Docker lists, or nil if it does not answer.
func lookAtDocker(ctx context.Context, o cleanupOptions) *events.View {
	if l, err := net.DialTimeout("unix", strings.TrimPrefix(o.dockerHost, "unix://"), time.Second); err != nil {
		return nil
	} else if err := l.Close(); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dockerPatience)
	defer cancel()
	w := events.New(events.Options{Log: o.log, Host: o.dockerHost, Poke: cancel})
	_ = w.Run(ctx) // ends with the first list, or out of patience
	return w.View()
}

// unknown lists the switches that may have been ours, where something of ours is
// there and nothing says what they were before.
func (l *leftovers) unknown(ctx context.Context, m *memory, found []string) ([]string, error) {
	if !m.lost || !slices.ContainsFunc(found, func(item string) bool { return !strings.HasPrefix(item, "file ") }) {
		return nil, nil
	}
	alike, err := l.links.Alike(ctx)
	if err != nil {
		return nil, fmt.Errorf("looking for sysctls that may be eipnet's: %w", err)
	}
	return alike, nil
}

// files lists our sockets and state files.
func (l *leftovers) files() ([]string, error) {
	out, err := state.Files(filepath.Join(l.o.stateDir, "state.db"))
	if err != nil {
		return nil, err
	}
	for _, path := range append([]string{l.o.apiSocket}, l.o.pluginSockets...) {
		if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
			out = append(out, path)
		}
	}
	return out, nil
}
