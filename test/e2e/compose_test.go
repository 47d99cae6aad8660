package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/api"
	"github.com/eipnet/eipnet/internal/plan"
	"github.com/eipnet/eipnet/test/lab"
)

const (
	sidecarImage = "eipnet/eipnet:latest"
	baseImage    = "debian:trixie-slim"
	goImage      = "golang:1.26"
	proxyImage   = "wollomatic/socket-proxy:1"
)

// services are those of the Compose examples, and where each of them lives.
var services = map[string]string{"web": "eth0", "api": "eth1", "worker": "eth2"}

// TestCompose: the Compose files of the repository, which are a user's but for
// image and addresses: eipnet in a container, with docker.sock and behind a
// proxy that only reads, and networks of eipnet's own. Each service leaves by its
// own EIP and answers on it, and nothing stays behind.
func TestCompose(t *testing.T) {
	r := prepare(t, lab.Config{Shape: lab.ThreeSubnets, RPFilter: "1"})
	if _, err := r.Docker(t.Context(), "compose", "version"); err != nil {
		if engine() == "20.10" {
			t.Skip("Debian has no Compose v2 for this engine")
		}
		t.Fatal(err)
	}
	r.buildSidecar(t)
	// The first port that Docker publishes leaves chains of Docker's behind.
	r.docker("network", "create", "first")
	r.docker("run", "-d", "--name", "first", "--network", "first", "-p", "8090:8080", lab.Image)
	r.docker("rm", "-f", "first")
	r.docker("network", "rm", "first")
	before := r.hostState()
	r.composeSidecar(t)
	if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(r.hostState(), "\n")); diff != "" {
		t.Errorf("the sidecar leaves behind (-before +after):\n%s", diff)
	}
	r.serve()
	r.composeDriver(t)
}

// buildSidecar makes the sidecar's image: in soak by the repository's Dockerfile
// as it is, on bases of the lab's own under their public names; else, as
// compiling in a container takes minutes, of what the Dockerfile's last stage
// takes: plugin/rootfs.sh's folder, the binary, and the settings of that stage.
func (r *rig) buildSidecar(t *testing.T) {
	t.Helper()
	start := time.Now()
	if soak() {
		r.buildDockerfile(t)
	} else {
		dockerfile, err := os.ReadFile(filepath.Join("..", "..", "Dockerfile"))
		if err != nil {
			t.Fatal(err)
		}
		_, last, _ := strings.Cut(string(dockerfile), "\nFROM scratch\n")
		script := "tar -C " + r.pluginDir() + "/rootfs -c . | docker import"
		for line := range strings.Lines(last) {
			switch word, _, _ := strings.Cut(line, " "); word {
			case "ENV", "HEALTHCHECK", "ENTRYPOINT", "CMD":
				script += " --change '" + strings.TrimSpace(line) + "'"
			}
		}
		if strings.Count(script, "--change") != 4 {
			t.Fatalf("the Dockerfile's last stage is another one: %s", last)
		}
		r.on("sh", "-ec", script+" - "+sidecarImage)
	}
	r.report("the sidecar's image, made in", time.Since(start).Round(time.Second).String(), "")
	size, err := strconv.Atoi(r.docker("image", "inspect", "-f", "{{.Size}}", sidecarImage))
	if err != nil || size > maxRootfs {
		t.Errorf("the image has %d bytes (%v), more than %d", size, err, maxRootfs)
	}
}

// buildDockerfile runs docker build on the repository's sources.
func (r *rig) buildDockerfile(t *testing.T) {
	t.Helper()
	const dir = "/root/src"
	if err := errors.Join(r.ImportBase(t.Context(), baseImage), r.BuildGo(t.Context(), goImage, baseImage)); err != nil {
		t.Fatal(err)
	}
	r.on("mkdir", "-p", dir)
	for _, s := range []string{"Dockerfile", ".dockerignore", "go.mod", "go.sum", "cmd", "driver", "events", "internal", "nicdial", "plugin", "snat"} {
		if out, err := exec.CommandContext(t.Context(), "cp", "-r", filepath.Join("..", "..", s), r.Host.Path(dir)).CombinedOutput(); err != nil {
			t.Fatalf("copying %s: %v: %s", s, err, out)
		}
	}
	r.on("env", "DOCKER_BUILDKIT=0", "docker", "build", "-t", sidecarImage, dir)
}

// composeFiles puts example files of the repository on the host, with the lab's
// image and addresses in place of a user's, and returns docker compose on them.
func (r *rig) composeFiles(t *testing.T, names ...string) func(args ...string) string {
	t.Helper()
	all := []string{"compose"}
	for i, name := range names {
		text, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil {
			t.Fatal(err)
		}
		example := strings.ReplaceAll(string(text), "image: app\n", "image: "+lab.Image+"\n")
		for nic, addr := range map[string]string{"eth0": "172.31.0.8", "eth1": "172.31.0.14", "eth2": "172.31.0.21"} {
			example = strings.ReplaceAll(example, addr+":", r.Addr(nic).String()+":")
		}
		if i == 0 && !strings.Contains(example, lab.Image) {
			t.Fatalf("%s has no service with the image app", name)
		}
		path := "/root/example/" + name
		if err := r.Host.WriteFile(path, []byte(example), 0o644); err != nil {
			t.Fatal(err)
		}
		all = append(all, "-f", path)
	}
	t.Cleanup(func() { // also after a failure
		if _, err := r.Docker(context.Background(), append(all, "down", "-t", "1")...); err != nil {
			t.Error(err)
		}
	})
	return func(args ...string) string {
		t.Helper()
		return r.docker(append(all, args...)...)
	}
}

func (r *rig) composeSidecar(t *testing.T) {
	compose := r.composeFiles(t, "docker-compose.example.yml")
	proxied := r.composeFiles(t, "docker-compose.example.yml", "docker-compose.proxy.example.yml")
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, args := range [][]string{{"ps", "-a"}, {"logs", "example-eipnet-1"}, {"logs", "example-socket-proxy-1"}} {
			out, err := r.Host.Command(context.Background(), "docker", args...).CombinedOutput()
			t.Logf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	})
	start := time.Now()
	compose("up", "-d")
	t.Logf("docker compose up took %v", time.Since(start).Round(time.Millisecond))
	r.liveServices(t)
	r.serviceStatus(t, "example-eipnet-1", map[string]int{"example-web-1 eth0": 1, "example-api-1 eth1": 2, "example-worker-1 eth2": 1})
	if got, err := r.exec("example-web-1", "get", "http://api:8080/hello"); err != nil || got != "hello" {
		t.Errorf("web → api by name: %q, %v", got, err)
	}
	for service, nic := range services {
		ports := r.docker("ps", "--filter", "name=example-"+service, "--format", "{{.Ports}}")
		if want := fmt.Sprintf("%v:8090->8080/tcp", r.Addr(nic)); !strings.Contains(ports, want) {
			t.Errorf("docker ps shows %q for %s, want %s", ports, service, want)
		}
	}

	// Another eipnet in its place, as with an upgrade, and with less to say to Docker.
	r.docker("exec", "-d", "example-api-1", "/app", "tcp", "--hold", "--interval", "5ms", lab.SiteAddr.String()+":7")
	goesOn := func() {
		t.Helper()
		sent := func() int {
			return r.Site.Count(func(s lab.Seen) bool { return s.Proto == "tcp" && s.Src.Addr() == r.EIP("eth1") && s.Detail != "" })
		}
		before := sent()
		r.eventually("the connection to go on", func() error {
			if n := sent(); n < before+20 {
				return fmt.Errorf("%d lines were sent, and %d before", n, before)
			}
			return nil
		})
	}
	goesOn()
	if err := r.BuildImageAs(t.Context(), proxyImage, `ENTRYPOINT ["/app","socket-proxy"]`); err != nil {
		t.Fatal(err)
	}
	proxied("up", "-d", "--no-deps", "socket-proxy", "eipnet")
	r.eventually("eipnet to see Docker through the proxy", func() error {
		_, err := r.Docker(t.Context(), "exec", "example-eipnet-1", "eipnet", "status", "--ready")
		return err
	})
	goesOn()
	if mounts := r.docker("inspect", "-f", "{{range .Mounts}}{{.Source}} {{end}}", "example-eipnet-1"); strings.Contains(mounts, " /run ") || strings.HasPrefix(mounts, "/run ") {
		t.Errorf("eipnet has the host's /run all the same: %s", mounts)
	}
	r.liveServices(t)
	proxied("restart", "-t", "1", "worker")
	r.liveServices(t)
	r.serviceStatus(t, "example-eipnet-1", map[string]int{"example-web-1 eth0": 1, "example-api-1 eth1": 2, "example-worker-1 eth2": 1})
	if refused := r.docker("logs", "example-socket-proxy-1"); refused != "" {
		t.Errorf("the proxy refused what eipnet asked: %s", refused)
	}
	r.proxyReadsOnly(t)
	proxied("down", "-t", "1")
	r.docker("volume", "rm", "example_docker-api")
	compose("run", "--rm", "--no-deps", "eipnet", "cleanup")
	compose("down") // up to 2.26 the former makes the file's networks
	r.resetSniffers()
}

// proxyReadsOnly fails the test unless the proxy refuses what does more than read.
func (r *rig) proxyReadsOnly(t *testing.T) {
	t.Helper()
	socket := r.docker("volume", "inspect", "-f", "{{.Mountpoint}}", "example_docker-api") + "/docker.sock"
	for path, want := range map[string]int{"/v1.44/info": 200, "/v1.44/images/json": 403, "/v1.44/containers/json": 200, "/v1.44/containers/x/export": 403} {
		if got := r.overSocket(t, socket, http.MethodGet, path); got != want {
			t.Errorf("GET %s: %d, want %d", path, got, want)
		}
	}
	if got := r.overSocket(t, socket, http.MethodPost, "/v1.44/containers/create"); got != 403 {
		t.Errorf("POST: %d, want 403", got)
	}
}

// overSocket asks Docker's API, and returns the status code.
func (r *rig) overSocket(t *testing.T, socket, method, path string) int {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", r.Host.Path(socket))
		},
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://docker"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func (r *rig) composeDriver(t *testing.T) {
	compose := r.composeFiles(t, "docker-compose.driver.example.yml")
	if strings.HasPrefix(r.docker("compose", "version", "--short"), "2.26.") { // it knows no options of endpoints
		r.on("sed", "-i", `s/^  api:$/&\n    labels: {eip.nic: eth1}/`, "/root/example/docker-compose.driver.example.yml")
	}
	compose("up", "-d")
	r.liveServices(t)
	r.serviceStatus(t, "", map[string]int{"example-web-1 eth0": 1, "example-api-1 eth1": 1, "example-worker-1 eth2": 1})
	compose("down", "-t", "1")
	if s := r.well(); len(s.Endpoints)+len(s.Networks) > 0 {
		t.Errorf("status after docker compose down: %+v", s)
	}
}

// liveServices fails the test unless each service answers on its EIP and leaves as it.
func (r *rig) liveServices(t *testing.T) {
	t.Helper()
	for service, nic := range services {
		// The container's own words: which address the site saw it come from.
		r.answers(r.url(nic, 8090), r.EIP(nic).String())
		r.leaves(t, "example-"+service+"-1", r.EIP(nic).String())
	}
	r.clean()
}

// serviceStatus compares how many endpoints of which container are pinned to which NIC.
func (r *rig) serviceStatus(t *testing.T, sidecar string, want map[string]int) {
	t.Helper()
	status := r.status
	if sidecar != "" {
		status = func() (s api.Status, err error) {
			// Exit code 2 has problems to show; a real failure prints nothing.
			text, failed := r.Docker(t.Context(), "exec", sidecar, "eipnet", "status", "--json")
			if err = json.Unmarshal([]byte(text), &s); err != nil {
				err = errors.Join(failed, err)
			}
			return s, err
		}
	}
	pinned := map[string]int{}
	for _, e := range r.noProblems(status).Endpoints {
		if e.State == plan.StatePinned {
			pinned[e.Container+" "+e.NIC]++
		}
	}
	if diff := cmp.Diff(want, pinned); diff != "" {
		t.Errorf("pinned endpoints (-want +got):\n%s", diff)
	}
}
