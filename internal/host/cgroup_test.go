package host

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/eipnet/eipnet/internal/model"
)

// TestCgroups: where a container's cgroup is found, and on which level.
func TestCgroups(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("directories have to be root's")
	}
	id, other := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	for _, tc := range []struct {
		name    string
		dirs    []string
		users   string // a directory that is not root's
		id      string
		mode    string
		stopped bool
		want    string
		level   int
	}{
		{name: "systemd", dirs: []string{"system.slice/docker-" + id + ".scope"}, want: "system.slice/docker-" + id + ".scope", level: 2},
		{name: "cgroupfs", dirs: []string{"docker/" + id, "docker/" + other}, want: "docker/" + id, level: 2},
		{name: "--cgroup-parent", dirs: []string{"a.slice/a-b.slice/docker-" + id + ".scope"}, want: "a.slice/a-b.slice/docker-" + id + ".scope", level: 3},
		{name: "--cgroup-parent /", dirs: []string{id}, want: id, level: 1},
		{name: "it is searched for while it runs only", dirs: []string{"mine/" + id}, stopped: true},
		{name: "being started, in the usual place", dirs: []string{"docker/" + id}, stopped: true, want: "docker/" + id, level: 2},
		{name: "not there", dirs: []string{"docker/" + other}},
		{name: "two of them", dirs: []string{"a/" + id, "b/" + id}},
		{name: "within another container", dirs: []string{"docker/" + other + "/docker/" + id, "system.slice/docker-" + other + ".scope/" + id}},
		{name: "a user's", dirs: []string{"user.slice/" + id}, users: "user.slice/" + id},
		{name: "a user's beside the container's", dirs: []string{"user.slice/" + id, "mine/" + id}, users: "user.slice/" + id, want: "mine/" + id, level: 2},
		{name: "not on the host's network", dirs: []string{"docker/" + id, "mine/" + id}, mode: "none"},
		{name: "no id", dirs: []string{"docker/a1"}, id: "a1"},
		{name: "a path for an id", dirs: []string{"docker/a1"}, id: "../docker/a1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := cgroups{root: t.TempDir()}
			for _, d := range tc.dirs {
				if err := os.MkdirAll(filepath.Join(c.root, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if tc.users != "" {
				if err := os.Chown(filepath.Join(c.root, tc.users), 1000, 1000); err != nil {
					t.Fatal(err)
				}
			}
			if tc.id == "" {
				tc.id = id
			}
			if tc.mode == "" {
				tc.mode = model.ModeHost
			}
			want := map[string]model.Cgroup{}
			if tc.want != "" {
				var st unix.Stat_t
				if err := unix.Stat(filepath.Join(c.root, tc.want), &st); err != nil {
					t.Fatal(err)
				}
				want[tc.id] = model.Cgroup{ID: st.Ino, Level: tc.level}
			}
			strays := []model.Stray{{Container: model.Container{ID: tc.id}, Mode: tc.mode, Running: !tc.stopped}}
			for _, when := range []string{"first", "again"} {
				got := c.find(strays)
				maps.DeleteFunc(got, func(_ string, g model.Cgroup) bool { return g == model.Cgroup{} }) // see TestCgroupGone
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", when, diff)
				}
			}
			if tc.want == "" {
				return
			}
			if err := os.Remove(filepath.Join(c.root, tc.want)); err != nil {
				t.Fatal(err)
			}
			if got := c.find(strays); got[tc.id] != (model.Cgroup{}) {
				t.Errorf("gone, and found: %v", got)
			}
		})
	}
}

// TestCgroupGone: a container that ends has no cgroup a moment before Docker says
// so. That is no news, and one that never gets any is.
func TestCgroupGone(t *testing.T) {
	id := strings.Repeat("a1", 32)
	strays := []model.Stray{{Container: model.Container{ID: id}, Mode: model.ModeHost, Running: true}}
	c := cgroups{root: t.TempDir()}
	for range 2 {
		if group, ok := c.find(strays)[id]; !ok || group != (model.Cgroup{}) {
			t.Errorf("at first: %v, %v; want one of which nobody knows", group, ok)
		}
	}
	c.age(id, cgroupPatience)
	if got := c.find(strays); len(got) > 0 {
		t.Errorf("after a while: %v, want none", got)
	}
	strays[0].Running = false
	if got := c.find(strays); len(got)+len(c.missed) > 0 {
		t.Errorf("ended: %v, remembered: %v", got, c.missed)
	}
}

// age makes a search in vain as much older.
func (c *cgroups) age(id string, by time.Duration) {
	m := c.missed[id]
	m.since, m.searched = m.since.Add(-by), m.searched.Add(-by)
	c.missed[id] = m
}

// TestCgroupSearch: what was searched for in vain is not searched for in every
// pass, but found in the usual place at once, and anew after a restart.
func TestCgroupSearch(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("directories have to be root's")
	}
	id := strings.Repeat("a1", 32)
	stray := model.Stray{Container: model.Container{ID: id}, Mode: model.ModeHost, Running: true}
	unusual, usual := "mine/"+id, "docker/"+id
	for _, tc := range []struct {
		name string
		dirs []string // while it was searched for
		then string   // the one that is there afterwards
		act  func(c *cgroups)
		want string
	}{
		{name: "at once", then: unusual},
		{name: "at once, in the usual place", then: usual, want: usual},
		{name: "after some seconds", then: unusual, act: func(c *cgroups) { c.age(id, searchAgain) }, want: unusual},
		{name: "after a restart", then: unusual, want: unusual, act: func(c *cgroups) {
			ended := stray
			ended.Running = false
			c.find([]model.Stray{ended})
		}},
		{name: "two, of which one stays", dirs: []string{"other/" + id, unusual}, then: unusual},
		{
			name: "two, of which one stays, after some seconds", dirs: []string{"other/" + id, unusual}, then: unusual, want: unusual,
			act: func(c *cgroups) { c.age(id, searchAgain) },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := cgroups{root: t.TempDir()}
			for _, d := range tc.dirs {
				if err := os.MkdirAll(filepath.Join(c.root, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			c.find([]model.Stray{stray})
			for _, d := range tc.dirs {
				if err := os.Remove(filepath.Join(c.root, d)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.MkdirAll(filepath.Join(c.root, tc.then), 0o755); err != nil {
				t.Fatal(err)
			}
			if tc.act != nil {
				tc.act(&c)
			}
			c.find([]model.Stray{stray})
			if got := c.paths[id]; got != tc.want {
				t.Errorf("found %q, want %q", got, tc.want)
			}
		})
	}
}

// TestCheckCgroups: a layout that does not do is told in words.
func TestCheckCgroups(t *testing.T) {
	namespace := filepath.Join(t.TempDir(), "ns")
	if err := os.Symlink("cgroup:[4026532000]", namespace); err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, root, namespace, want string) {
		t.Helper()
		if err := checkCgroups(root, namespace); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", root, err, want)
		}
	}
	check(t, t.TempDir(), namespace, "no hierarchy of cgroups version 2")
	check(t, filepath.Join(t.TempDir(), "gone"), namespace, "no such file or directory (eipnet's own container needs --cgroupns host, and the host's /sys/fs/cgroup, read-only, below --host-root")
	t.Run("namespace", func(t *testing.T) {
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			var st unix.Statfs_t
			if unix.Statfs(root, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
				check(t, root, namespace, "namespace of its own")
				check(t, root, namespace+"-gone", "reading the cgroup namespace")
				return
			}
		}
		const none = "no hierarchy of cgroups version 2"
		if os.Getenv("CI") != "" {
			t.Fatal(none + ", and CI is set")
		}
		t.Skip(none)
	})
}
