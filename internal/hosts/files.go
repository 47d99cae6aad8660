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
	var b strings.Builder
	for _, name := range k.names() {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(k.o.Dir, name), &st); err == nil {
			fmt.Fprintf(&b, "%s %d %d %d %v\n", name, st.Dev, st.Ino, st.Size, st.Ctim)
		}
	}
	return b.String()
}

// names lists the files that may declare something.
func (k *Keeper) names() []string {
	list, err := os.ReadDir(k.o.Dir)
	if k.o.Dir == "" || err != nil {
		return nil
	}
	var out []string
	for _, f := range list {
		if name := f.Name(); strings.HasSuffix(name, suffix) && !strings.HasPrefix(name, ".") && !f.IsDir() {
			out = append(out, name)
		}
	}
	return out
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
	bad := make(map[string]bool)
	want := make(map[string]model.HostEntry)
	if _, err := os.Stat(k.o.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) && k.o.Dir != "" {
		wrong("", err)
		k.tell(problems)
		return false
	}
	for _, name := range k.names() {
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
	done := true
	for _, e := range k.o.Store.HostEntries() {
		w, wanted := want[e.Name]
		moved := wanted && e.File != "" && (w.Bridge != e.Bridge || w.Address != e.Address)
		if !e.Leaving && !moved && (e.File == "" || wanted || bad[e.File]) {
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
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if err := k.declare(ctx, want[name]); err != nil {
			wrong(want[name].File, err)
		}
	}
	k.tell(problems)
	return done && len(problems) == 0
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

func (k *Keeper) read(name string) (model.HostEntry, error) {
	text, err := os.ReadFile(filepath.Join(k.o.Dir, name))
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
