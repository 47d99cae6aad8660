package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// engineRoot says where an engine comes from.
type engineRoot struct {
	suite  string   // Debian's name for the release
	script string   // debootstrap's script: older versions of it do not know newer suites
	docker []string // the packages of engine, command line, and Compose v2 (bookworm has v1 only)
}

var engineRoots = map[string]engineRoot{
	"20.10": {"bookworm", "bookworm", []string{"docker.io"}},
	"26.1":  {"trixie", "sid", []string{"docker.io", "docker-cli", "docker-compose"}},
	"28.5":  {"forky", "sid", []string{"docker.io", "docker-cli", "docker-compose"}},
}

// rootPackages are in every root. firewalld's dependencies are on virtual packages, which debootstrap
// does not resolve: dbus and libpam-systemd (with systemd-sysv) are what provides them.
var rootPackages = []string{"firewalld", "dbus", "libpam-systemd", "systemd-sysv", "ufw", "iptables", "nftables", "iproute2", "conntrack", "ca-certificates", "iputils-ping", "procps", "curl"}

const (
	cacheEnv = "EIPNET_LAB_CACHE"
	// rootFormat is part of the marker: raise it when a root is made otherwise than before.
	rootFormat  = 2
	scripts     = "/usr/share/debootstrap/scripts"
	mirrorLabel = "Debian"
)

// Engines lists the engines that a lab can have, oldest first.
func Engines() []string { return slices.Sorted(maps.Keys(engineRoots)) }

// CacheDir is where engines' roots are kept: $EIPNET_LAB_CACHE, or eipnet/lab in the user's cache folder.
func CacheDir() (string, error) {
	if dir := os.Getenv(cacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache folder (set %s): %w", cacheEnv, err)
	}
	return filepath.Join(dir, "eipnet", "lab"), nil
}

func (e engineRoot) packages() []string { return append(slices.Clone(e.docker), rootPackages...) }

// marker changes when the root would be made otherwise.
func (e engineRoot) marker() string {
	return fmt.Sprintf("format %d\nsuite %s\npackages %s\n", rootFormat, e.suite, strings.Join(e.packages(), " "))
}

// home is the name of the root's folder in the cache. Roots that are made otherwise have another one, so
// that a newer lab takes no root away from under an older one that runs.
func (e engineRoot) home(engine string) string {
	sum := sha256.Sum256([]byte(e.marker()))
	return fmt.Sprintf("engine-%s-%x", engine, sum[:4])
}

// EnsureRoot returns the root of an engine, a folder with a Debian and that engine in it. It is made
// with debootstrap the first time and when the list of packages has changed. The mirror is the machine's
// own apt source unless one is given.
func EnsureRoot(ctx context.Context, engine, mirror string, log func(string, ...any)) (string, error) {
	e, ok := engineRoots[engine]
	if !ok {
		return "", fmt.Errorf("making an engine's root: no engine %q, only %s", engine, strings.Join(Engines(), ", "))
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("making the cache folder: %w", err)
	}
	lock, err := lockFile(filepath.Join(cache, engine+".lock"))
	if err != nil {
		return "", fmt.Errorf("making the root of engine %s: %w", engine, err)
	}
	defer lock.Close()

	home := filepath.Join(cache, e.home(engine))
	root, markerPath := filepath.Join(home, "root"), filepath.Join(home, "marker")
	if have, err := os.ReadFile(markerPath); err == nil && string(have) == e.marker() {
		return root, nil
	}
	log("building the root of engine %s (%s) in %s: about a minute, once", engine, e.suite, cache)
	if err := e.build(ctx, cache, home, engine, mirror, log); err != nil {
		return "", fmt.Errorf("making the root of engine %s: %w", engine, err)
	}
	return root, nil
}

// lockFile takes an exclusive lock and holds it until the file is closed.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening lock %s: %w", path, err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
	}
}

// build makes a root beside the place where it belongs and moves it there when it is whole.
func (e engineRoot) build(ctx context.Context, cache, home, engine, mirror string, log func(string, ...any)) (err error) {
	if mirror == "" {
		if mirror, err = aptMirror(ctx); err != nil {
			return err
		}
	}
	part := filepath.Join(cache, "engine-"+engine+".part")
	if err := os.RemoveAll(part); err != nil { // of a build that was killed
		return err
	}
	root := filepath.Join(part, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(part))
		}
	}()
	// First stage: fetch and unpack only. Second stage: run the packages' scripts, without network, with
	// mounts and processes of their own, and with services forbidden to start.
	first := []string{
		"--mount", "--fork", "--pid", "--kill-child", "debootstrap", "--foreign", "--variant=minbase",
		"--include=" + strings.Join(e.packages(), ","), e.suite, root, mirror, filepath.Join(scripts, e.script),
	}
	if err := unshare(ctx, first...); err != nil {
		return fmt.Errorf("fetching %s: %w", e.suite, err)
	}
	log("engine %s: packages fetched, setting up", engine)
	policy := filepath.Join(root, "usr/sbin/policy-rc.d")
	if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
		return err
	}
	if err := unshare(ctx, "--mount", "--net", "--ipc", "--uts", "--fork", "--pid", "--kill-child",
		"chroot", root, "/debootstrap/debootstrap", "--second-stage"); err != nil {
		return fmt.Errorf("setting up %s: %w", e.suite, err)
	}
	return e.finish(ctx, part, root, home, engine)
}

// finish checks the engine's version, drops what is not needed, and puts the root in its place.
func (e engineRoot) finish(ctx context.Context, part, root, home, engine string) error {
	debs, err := filepath.Glob(filepath.Join(root, "var/cache/apt/archives/*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := os.Remove(deb); err != nil {
			return err
		}
	}
	out, err := exec.CommandContext(ctx, "chroot", root, "/usr/sbin/dockerd", "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("asking the engine for its version: %w: %s", err, out)
	}
	if !strings.Contains(string(out), "version "+engine+".") {
		return fmt.Errorf("the mirror's %s has another engine now: %s", e.suite, strings.TrimSpace(string(out)))
	}
	if err := os.WriteFile(filepath.Join(part, "marker"), []byte(e.marker()), 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(home); err != nil {
		return err
	}
	return os.Rename(part, home)
}

// unshare runs a program in namespaces of its own, with an environment that does not depend on ours.
func unshare(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: …%s", err, out)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail []byte

func (t *tail) Write(b []byte) (int, error) {
	const keep = 4 << 10
	*t = append(*t, b...)
	*t = (*t)[max(0, len(*t)-keep):]
	return len(b), nil
}

// aptMirror reads the machine's apt configuration: where its own release's packages come from.
func aptMirror(ctx context.Context) (string, error) {
	const format = "$(REPO_URI)|$(RELEASE)|$(LABEL)"
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", format, "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("asking apt for its sources: %w", err)
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		f := strings.Split(line, "|")
		// Updates and security have a suffix. The label is known once "apt-get update" was run.
		if len(f) == 3 && f[2] == mirrorLabel && !strings.Contains(f[1], "-") {
			return f[0], nil
		}
	}
	return "", errors.New("apt has no Debian source (run apt-get update, or give a mirror)")
}
