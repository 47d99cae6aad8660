package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// notInBase is what an image of the engine's root does without: the engine, and what no build asks for.
var notInBase = []string{
	"./usr/bin/containerd*", "./usr/bin/ctr", "./usr/bin/docker*", "./usr/bin/perl*", "./usr/sbin/dockerd", "./usr/sbin/runc",
	"./usr/lib/cni", "./usr/lib/containerd", "./usr/lib/systemd", "./usr/libexec", "./usr/share/[!d]*", "./usr/share/d[!p]*", "./usr/local", "./root",
	"./etc/apt/sources.list*", "./var/cache/apt/*", "./var/lib/apt/lists/*", "./var/lib/docker",
}

// ImportBase makes an image of the engine's root under a public name. Debian's packages that a Dockerfile
// asks for have to be in the root: in the image there is no mirror to ask.
func (l *Lab) ImportBase(ctx context.Context, ref string) error {
	var exclude strings.Builder
	for _, pattern := range notInBase {
		fmt.Fprintf(&exclude, " '--exclude=%s'", pattern)
	}
	script := "tar -C / --one-file-system" + exclude.String() + " -c . | docker import - " + ref
	if _, err := l.Host.Run(ctx, "sh", "-ec", script); err != nil {
		return fmt.Errorf("importing %s: %w", ref, err)
	}
	return nil
}

// goDockerfile is the image golang, as far as a Dockerfile builds on it.
const goDockerfile = `FROM %s
COPY go /usr/local/go
COPY mod /go/pkg/mod
ENV GOPATH=/go PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin GOPROXY=off GOTOOLCHAIN=local
`

// BuildGo makes an image of a base and the installed Go toolchain, with the modules of this module.
func (l *Lab) BuildGo(ctx context.Context, ref, base string) error {
	const dir = "/root/golang"
	goroot, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("asking for the Go toolchain: %w", err)
	}
	if err := l.Host.WriteFile(dir+"/Dockerfile", fmt.Appendf(nil, goDockerfile, base), 0o644); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", strings.TrimSpace(string(goroot)), l.Host.Path(dir+"/go")).CombinedOutput(); err != nil {
		return fmt.Errorf("copying the Go toolchain: %w: %s", err, out)
	}
	download := exec.CommandContext(ctx, "go", "mod", "download")
	download.Env = append(os.Environ(), "GOMODCACHE="+l.Host.Path(dir+"/mod"), "GOFLAGS=-modcacherw")
	if out, err := download.CombinedOutput(); err != nil {
		return fmt.Errorf("fetching modules: %w: %s", err, out)
	}
	if _, err := l.Host.Run(ctx, "env", "DOCKER_BUILDKIT=0", "docker", "build", "-t", ref, dir); err != nil {
		return fmt.Errorf("building %s: %w", ref, err)
	}
	_, err = l.Host.Run(ctx, "rm", "-r", dir)
	return err
}
