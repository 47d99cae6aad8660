package host

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

const (
	cgroupMount     = "sys/fs/cgroup"
	cgroupNamespace = "/proc/self/ns/cgroup"
	// initialCgroups is what the namespace of the host itself is called, on every
	// kernel (PROC_CGROUP_INIT_INO).
	initialCgroups = "cgroup:[4026531835]"
	// inContainer is what eipnet in a container needs to see the host's cgroups.
	inContainer = "eipnet's own container needs --cgroupns host, and the host's /sys/fs/cgroup, read-only, below --host-root"
	// cgroupPatience is for how long a running container without a cgroup is no
	// news: it has ended, and Docker tells of that when all is cleared away.
	cgroupPatience = 5 * time.Second
	// searchAgain is for how long nothing is searched for that was not found: the
	// hierarchy may be large, and passes are frequent. With the patience over,
	// one more search has been in vain.
	searchAgain = cgroupPatience
)

// NoCgroups tells why containers' cgroups cannot be found and told to nftables;
// nil: they can. All controllers have to be in the hierarchy of version 2, as
// Docker puts containers into that one only then. And nftables counts levels from the root of
// the caller's namespace, so that has to be the host's.
func (h *Host) NoCgroups() error {
	return checkCgroups(filepath.Join(h.o.Root, cgroupMount), cgroupNamespace)
}

func checkCgroups(root, namespace string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return fmt.Errorf("looking at %s: %w (%s)", root, err, inContainer)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%s is no hierarchy of cgroups version 2 (boot with systemd.unified_cgroup_hierarchy=1)", root)
	}
	name, err := os.Readlink(namespace)
	if err != nil {
		return fmt.Errorf("reading the cgroup namespace: %w", err)
	}
	if name != initialCgroups {
		return fmt.Errorf("eipnet is in a cgroup namespace of its own (%s)", inContainer)
	}
	return nil
}

// cgroups finds containers' cgroups by their names, which end in the container's
// id, and remembers where those were that are not in Docker's usual place.
type cgroups struct {
	root string

	mu     sync.Mutex
	paths  map[string]string // by container id, below root
	missed map[string]missed // running ones that have none, by container id
}

// missed is what is remembered of searches in vain.
type missed struct {
	since, searched time.Time
	several         bool // nobody knows which one it is
}

// Cgroups finds those of the containers on the host's network that have one now,
// by container id. For one that runs and has it in an unusual place the whole
// hierarchy is searched, and again after some seconds if that was in vain. The
// zero Cgroup is that of one that may have ended just now.
func (h *Host) Cgroups(strays []model.Stray) map[string]model.Cgroup { return h.cgroups.find(strays) }

func (c *cgroups) find(strays []model.Stray) map[string]model.Cgroup {
	c.mu.Lock()
	defer c.mu.Unlock()
	out, paths, still := make(map[string]model.Cgroup), make(map[string]string), make(map[string]missed)
	for _, s := range strays {
		id := s.Container.ID
		if s.Mode != model.ModeHost || !isContainerID(id) {
			continue
		}
		usual := []string{c.paths[id], "system.slice/" + scope(id), "docker/" + id}
		for _, path := range usual {
			if group, ok := c.at(path); ok {
				out[id], paths[id] = group, path
				break
			}
		}
		if _, ok := out[id]; ok || !s.Running {
			continue
		}
		m, again := c.missed[id]
		if now := time.Now(); !again || now.Sub(m.searched) >= searchAgain {
			found := c.search(id)
			if len(found) == 1 {
				if group, ok := c.at(found[0]); ok {
					out[id], paths[id] = group, found[0]
					continue
				}
			}
			m.searched, m.several = now, len(found) > 1
			if !again {
				m.since = now
			}
		}
		still[id] = m
		if !m.several && time.Since(m.since) < cgroupPatience {
			out[id] = model.Cgroup{}
		}
	}
	c.paths, c.missed = paths, still
	return out
}

// scope is what systemd calls a container's cgroup.
func scope(id string) string { return "docker-" + id + ".scope" }

// isContainerID keeps anything but a whole id from being a part of a path.
func isContainerID(id string) bool {
	return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}

// at returns the cgroup of a directory. Not one that a user has made, who may
// have been given a part of the hierarchy: it is called what the user likes.
func (c *cgroups) at(path string) (model.Cgroup, bool) {
	if path == "" {
		return model.Cgroup{}, false
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(c.root, path), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != 0 {
		return model.Cgroup{}, false
	}
	return model.Cgroup{ID: st.Ino, Level: strings.Count(path, "/") + 1}, true
}

// search looks for a container's cgroup everywhere but within containers.
func (c *cgroups) search(id string) []string {
	var found []string
	_ = filepath.WalkDir(c.root, func(path string, d fs.DirEntry, err error) error {
		name := filepath.Base(path)
		switch {
		case err != nil:
			if d != nil && d.IsDir() {
				return fs.SkipDir // gone meanwhile
			}
			return nil
		case !d.IsDir():
			return nil
		case name == id || name == scope(id):
			if rel, err := filepath.Rel(c.root, path); err == nil {
				found = append(found, rel)
			}
			return fs.SkipDir
		case isContainerID(name), strings.HasPrefix(name, "docker-") && strings.HasSuffix(name, ".scope"):
			return fs.SkipDir
		}
		return nil
	})
	return slices.DeleteFunc(found, func(path string) bool { _, ok := c.at(path); return !ok })
}
