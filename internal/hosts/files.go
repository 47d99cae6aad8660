package hosts

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// file is what a file of the folder says. Its name without .json is the entry's.
type file struct {
	NIC     string            `json:"nic"` // as --nic
	Address string            `json:"address"`
	Bridge  string            `json:"bridge,omitempty"`
	Publish []string          `json:"publish,omitempty"` // as -p
	Options map[string]string `json:"options,omitempty"` // eip.except, eip.fallback
}

// form is what errors show of it.
const form = `want {"nic": "eth1", "address": "172.29.0.100"}, and if you like "bridge": "br-web", "publish": ["8090:80"], "options": {"eip.except": "10.0.0.0/8"}`

// suffix is that of files that are read.
const suffix = ".json"

// lookInterval is how often the folder is looked at. Its files are read when
// one of them changed. Reading names is cheap, works where the folder comes
// later or is mounted anew, and misses nothing.
const lookInterval = time.Second

// Run follows the folder, and finishes removals that were interrupted, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	last, settled := "", false
	for {
		if now := k.look(); now != last || !settled {
			settled = k.follow(ctx)
			last = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Problems lists what is wrong with the files.
func (k *Keeper) Problems() []model.Problem {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.problems)
}

// look tells the files of the folder apart from what they were.
func (k *Keeper) look() string {
	names, err := k.names()
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(k.o.Dir, name), &st); err == nil {
			fmt.Fprintf(&b, "%s %d %d %d %v\n", name, st.Dev, st.Ino, st.Size, st.Ctim)
		}
	}
	return b.String()
}

// names lists the files that may declare something. A folder that is not there has none.
func (k *Keeper) names() ([]string, error) {
	if k.o.Dir == "" {
		return nil, nil
	}
	list, err := os.ReadDir(k.o.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the folder: %w", err)
	}
	var out []string
	for _, f := range list {
		if name := f.Name(); strings.HasSuffix(name, suffix) && !strings.HasPrefix(name, ".") && !f.IsDir() {
			out = append(out, name)
		}
	}
	return out, nil
}

// follow makes the entries be what the files say. It reports whether that, and
// what was to be removed, is done.
func (k *Keeper) follow(ctx context.Context) bool {
	k.changing.Lock()
	defer k.changing.Unlock()
	var problems []model.Problem
	wrong := func(name string, err error) {
		problems = append(problems, model.Problem{
			Code: model.CodeBadFile, Severity: model.Failure, Subject: filepath.Join(k.o.Dir, name), Text: err.Error(),
			Fix: "correct the file, or remove it; until then what it declared before stays",
		})
	}
	host, err := k.o.Core.Host(ctx)
	if err != nil {
		return false
	}
	names, unread := k.names()
	if unread != nil {
		wrong("", unread)
	}
	bad := make(map[string]bool)
	want := make(map[string]model.HostEntry)
	for _, name := range names {
		e, err := k.read(name)
		if err == nil {
			err = k.settle(&e, host)
		}
		if err != nil {
			bad[name] = true
			wrong(name, err)
			continue
		}
		want[e.Name] = e
	}
	stays := func(e model.HostEntry) bool {
		_, wanted := want[e.Name]
		return !e.Leaving && (e.File == "" || wanted || bad[e.File] || unread != nil)
	}
	moving, refused := k.moves(ctx, want, host, stays)
	for name, err := range refused {
		wrong(want[name].File, err)
		bad[want[name].File] = true
		delete(want, name)
	}
	done := true
	for _, e := range k.o.Store.HostEntries() {
		if stays(e) && !moving[e.Name] {
			continue
		}
		if !k.o.Seen() {
			done = false
			delete(want, e.Name)
			continue
		}
		if err := k.remove(ctx, e); err != nil {
			done = false
			delete(want, e.Name)
			k.o.Log.Warn("removing a host entry failed", slog.String("name", e.Name), slog.Any("err", err))
		}
	}
	order := slices.Sorted(maps.Keys(want))
	slices.SortStableFunc(order, func(a, b string) int { // no newcomer gets what was promised
		return cmp.Compare(rank(moving[a]), rank(moving[b]))
	})
	for _, name := range order {
		if err := k.declare(ctx, want[name]); err != nil {
			wrong(want[name].File, err)
		}
	}
	slices.SortFunc(problems, func(a, b model.Problem) int {
		return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Text, b.Text))
	})
	k.tell(problems)
	return done && len(problems) == 0
}

func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// moves tells which entries are to have another bridge or address, for which
// they are removed and made anew, and why not: what would be refused then is
// refused while the old one is still there. Each is checked against the others
// as they will be: two may change places.
func (k *Keeper) moves(ctx context.Context, want map[string]model.HostEntry, host model.Host, stays func(model.HostEntry) bool) (moving map[string]bool, refused map[string]error) {
	moving, refused = make(map[string]bool), make(map[string]error)
	old, will := make(map[string]model.HostEntry), make(map[string]model.HostEntry)
	entries := k.o.Store.HostEntries()
	for _, e := range slices.DeleteFunc(slices.Clone(entries), func(e model.HostEntry) bool { return !stays(e) }) {
		old[e.Name], will[e.Name] = e, e
		if w, wanted := want[e.Name]; wanted && e.File != "" && (w.Bridge != e.Bridge || w.Address != e.Address) {
			moving[e.Name], will[e.Name] = true, w
		}
	}
	for _, name := range slices.Sorted(maps.Keys(moving)) {
		if !has(without(host, entries), will[name]) {
			continue
		}
		fresh, err := k.lookAround(ctx, will[name])
		if err != nil {
			refused[name], will[name] = fmt.Errorf("looking at this host's networks: %w", err), old[name]
			delete(moving, name)
			continue
		}
		host = fresh
	}
	host = without(host, entries)
	for again := true; again; { // one that stays may be in another's way
		again = false
		for _, name := range slices.Sorted(maps.Keys(moving)) {
			if err := k.check(will[name], host, slices.Collect(maps.Values(will))); err != nil {
				refused[name], will[name], again = err, old[name], true
				delete(moving, name)
			}
		}
	}
	return moving, refused
}

// without is the host without the entries' own bridges and addresses.
func without(host model.Host, entries []model.HostEntry) model.Host {
	host.Links, host.Locals = slices.Clone(host.Links), slices.Clone(host.Locals)
	for _, e := range entries {
		host.Links = slices.DeleteFunc(host.Links, func(name string) bool { return name == e.Bridge })
		host.Locals = slices.DeleteFunc(host.Locals, func(a netip.Addr) bool { return a == e.Address })
	}
	return host
}

// declare makes an entry be as its file says.
func (k *Keeper) declare(ctx context.Context, e model.HostEntry) error {
	old, there := k.entry(e.Name)
	switch {
	case !there:
		return k.put(ctx, e)
	case old.Same(e):
		return nil
	case old.File == "":
		return fmt.Errorf("%s was made by eipnet host add, and says something else: eipnet host rm %s", e.Name, e.Name)
	}
	if err := k.o.Store.PutHostEntry(e); err != nil {
		return fmt.Errorf("storing %s: %w", e.Name, err)
	}
	k.o.Log.Info("host entry changed", slog.String("name", e.Name))
	if err := k.o.Core.Sync(ctx, e.Bridge); err != nil {
		return fmt.Errorf("changing %s: %w", e.Name, err)
	}
	return nil
}

// maxFile is far more than an entry needs.
const maxFile = 1 << 20

// regular reads a regular file. A FIFO would have us wait for whoever writes.
func regular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, errors.New("this is no regular file")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("the file has more than %d bytes", maxFile)
	}
	return text, err
}

func (k *Keeper) read(name string) (model.HostEntry, error) {
	text, err := regular(filepath.Join(k.o.Dir, name))
	if err != nil {
		return model.HostEntry{}, err
	}
	f, err := decode(text)
	if err != nil {
		return model.HostEntry{}, fmt.Errorf("%w; %s", err, form)
	}
	e := model.HostEntry{Name: strings.TrimSuffix(name, suffix), Bridge: f.Bridge, File: name}
	if e.Options, err = model.SelectNIC(f.NIC); err != nil {
		return model.HostEntry{}, fmt.Errorf("nic: %w", err)
	}
	if e.Address, err = netip.ParseAddr(f.Address); err != nil {
		return model.HostEntry{}, fmt.Errorf("address: %q is none; want an IPv4 address that nobody has, as 172.29.0.100", f.Address)
	}
	for key, value := range f.Options {
		if _, twice := e.Options[key]; twice {
			return model.HostEntry{}, fmt.Errorf("options: %s is what nic says; leave it out", key)
		}
		e.Options[key] = value
	}
	if e.Publishes, err = model.ParsePublishes(f.Publish); err != nil {
		return model.HostEntry{}, fmt.Errorf("publish: %w", err)
	}
	return e, nil
}

// decode reads the file's one object; its errors name line or field.
func decode(text []byte) (f file, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	line := func(offset int64) int { return 1 + bytes.Count(text[:offset], []byte("\n")) }
	err = d.Decode(&f)
	if err == nil && d.More() {
		return f, fmt.Errorf("line %d: something follows the object", line(d.InputOffset()))
	}
	if syntax, is := errors.AsType[*json.SyntaxError](err); is {
		return f, fmt.Errorf("line %d: %w", line(syntax.Offset), err)
	}
	if kind, is := errors.AsType[*json.UnmarshalTypeError](err); is {
		return f, fmt.Errorf("line %d: %s: there stands a JSON %s", line(kind.Offset), cmp.Or(kind.Field, "the whole"), kind.Value)
	}
	switch {
	case errors.Is(err, io.EOF):
		return f, errors.New("the file is empty")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return f, fmt.Errorf("line %d: the file ends within the object", line(int64(len(bytes.TrimSpace(text)))))
	case err != nil:
		return f, errors.New(strings.TrimPrefix(err.Error(), "json: ")) // an unknown field
	}
	return f, nil
}

// tell makes the problems known.
func (k *Keeper) tell(problems []model.Problem) {
	k.mu.Lock()
	changed := !slices.Equal(k.problems, problems)
	k.problems = problems
	k.mu.Unlock()
	if changed {
		k.o.Poke()
	}
}
