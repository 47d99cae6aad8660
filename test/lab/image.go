package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// Image is the reference of the image that BuildImage makes.
const Image = "eipnet/app:latest"

// buildGrace is what an interrupted build has to end in.
const buildGrace = 2 * time.Second

const appPackage = "github.com/eipnet/eipnet/test/lab/app"

// BuildImage builds the lab's program and imports it as Image. No registry is asked.
func (l *Lab) BuildImage(ctx context.Context) error { return l.BuildImageAs(ctx, Image) }

// BuildImageAs is BuildImage with a reference of one's own and more Dockerfile instructions, such as
// "LABEL eip.nic=eth1".
func (l *Lab) BuildImageAs(ctx context.Context, ref string, changes ...string) error {
	app, err := l.BuildApp(ctx)
	if err != nil {
		return err
	}
	layer, err := tarOf(app)
	if err != nil {
		return fmt.Errorf("packing image %s: %w", ref, err)
	}
	args := []string{"import", "--change", `ENTRYPOINT ["/app"]`, "--change", "EXPOSE 8080"}
	for _, c := range changes {
		args = append(args, "--change", c)
	}
	if _, err := l.Host.RunInput(ctx, bytes.NewReader(layer), "docker", append(args, "-", ref)...); err != nil {
		return fmt.Errorf("importing image %s: %w", ref, err)
	}
	return nil
}

// built is the lab's program, which is the same for all labs of a process.
var built struct {
	sync.Mutex
	app []byte
}

// BuildApp puts the lab's program, a static binary, into the lab's folder and returns its path on the
// machine. It is built once per process; the working directory must be inside the module.
func (l *Lab) BuildApp(ctx context.Context) (string, error) {
	built.Lock()
	defer built.Unlock()
	path := filepath.Join(l.dir, "app")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if built.app != nil {
		return path, os.WriteFile(path, built.app, 0o755)
	}
	tmp := filepath.Join(l.dir, "go-tmp") // goes with the lab, also when the build is interrupted
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, appPackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTMPDIR="+tmp)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it ends its compilers first
	cmd.WaitDelay = buildGrace
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w: %s", appPackage, err, out)
	}
	var err error
	built.app, err = os.ReadFile(path)
	return path, err
}

// tarOf is an image's only layer: the program and a place for temporary files.
func tarOf(app string) ([]byte, error) {
	data, err := os.ReadFile(app)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
		{Typeflag: tar.TypeReg, Name: "app", Mode: 0o755, Size: int64(len(data))},
	} {
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
