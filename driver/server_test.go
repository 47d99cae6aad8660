package driver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/driver/drivertest"
	"github.com/eipnet/eipnet/internal/model"
)

func TestFixedAnswers(t *testing.T) {
	h := newHarness(t)
	for path, want := range map[string]string{
		"/Plugin.Activate":               `{"Implements":["NetworkDriver"]}`,
		"/NetworkDriver.GetCapabilities": `{"Scope":"local","ConnectivityScope":"local","GwAllocChecker":false}`,
		"/NetworkDriver.DiscoverNew":     `{}`,
		"/NetworkDriver.DiscoverDelete":  `{}`,
		"/NetworkDriver.AllocateNetwork": `{}`,
		"/NetworkDriver.FreeNetwork":     `{}`,
		"/NetworkDriver.GwAllocCheck":    `{"SkipIPv4":false,"SkipIPv6":false}`,
	} {
		for _, body := range []string{"", "{}", "null"} {
			if status, got := h.raw(path, body); status != http.StatusOK || got != want {
				t.Errorf("%s: %d %s, want %s", path, status, got, want)
			}
		}
	}
	if status, got := h.raw("/NetworkDriver.Unheard", "{}"); status != http.StatusNotFound || got != `{"Err":"eipnet does not implement POST /NetworkDriver.Unheard"}` {
		t.Errorf("unknown call: %d %s", status, got)
	}
}

// Docker's retry after a broken connection sends an empty body.
func TestBadBodiesAreRefusedWithoutSideEffects(t *testing.T) {
	calls := []string{
		"CreateNetwork", "DeleteNetwork", "CreateEndpoint", "DeleteEndpoint", "EndpointOperInfo", "Join", "Leave",
		"ProgramExternalConnectivity", "RevokeExternalConnectivity",
	}
	valid := `{"NetworkID":"` + netID + `","EndpointID":"` + epA + `"}`
	bodies := map[string]string{
		"":                                       `{"Err":"reading the request: it is empty, as Docker repeated it: eipnet was away when it was sent first; start the container again"}`,
		"\n":                                     `{"Err":"reading the request: it is empty, as Docker repeated it: eipnet was away when it was sent first; start the container again"}`,
		"{":                                      `{"Err":"reading the request: unexpected EOF"}`,
		valid + "x":                              `{"Err":"reading the request: there is something behind the JSON object"}`,
		valid + "{}":                             `{"Err":"reading the request: there is something behind the JSON object"}`,
		strings.Repeat(" ", 1<<20) + valid:       `{"Err":"reading the request: http: request body too large"}`,
		`{"NetworkID":"a/b","EndpointID":"x"}`:   `{"Err":"reading the request: NetworkID \"a/b\" is no id"}`,
		`{"EndpointID":"x"}`:                     `{"Err":"reading the request: NetworkID is missing"}`,
		`{"NetworkID":"` + netID + `\u0000"}`:    "",
		`[]`:                                     "",
		`{"NetworkID":5,"EndpointID":[],"X":{}}`: "",
	}
	h := newHarness(t)
	h.network(nil)
	h.joined(epA, "172.19.0.2/16")
	passes, before := h.Core.Passes(), h.endpoint(epA)
	for _, call := range calls {
		for body, want := range bodies {
			status, got := h.raw("/NetworkDriver."+call, body)
			if status != http.StatusBadRequest || want != "" && got != want || !strings.HasPrefix(got, `{"Err":"`) {
				t.Errorf("%s %.80q: %d %s, want 400 %s", call, body, status, got, want)
			}
		}
	}
	if got := h.endpoint(epA); got.Phase != before.Phase || h.Core.Passes() != passes {
		t.Errorf("bad bodies had effects: %+v", got)
	}
}

// A hung pass is given up, and what the call did is taken back or completed when
// its time is over.
func TestDeadlines(t *testing.T) {
	tests := []struct {
		call, want string
		req        object
		left       int // endpoints
	}{
		{"CreateNetwork", "making bridge eip-second: context deadline exceeded", networkReq("second", nil), 2},
		{"Join", "pinning endpoint bbbbbbbbbbbb: context deadline exceeded", joinReq(epB), 2},
		{"ProgramExternalConnectivity", "publishing ports of endpoint aaaaaaaaaaaa: context deadline exceeded", programReq(epA, ports(tcp(80, 80))), 2},
		{"DeleteEndpoint", "", ref(netID, epB), 1},
	}
	for _, tt := range tests {
		for _, passes := range []int{1, 3} {
			t.Run(fmt.Sprint(tt.call, passes), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := newHarness(t)
					h.network(nil)
					h.joined(epA, "172.19.0.2/16")
					h.ok("CreateEndpoint", endpointReq(netID, epB, "172.19.0.3/16", nil))
					if tt.call == "CreateNetwork" {
						tt.req["IPv4Data"] = []object{{"Pool": "10.9.0.0/24", "Gateway": "10.9.0.1/24"}}
					}
					if tt.call == "DeleteEndpoint" {
						h.ok("Join", joinReq(epB))
					}
					before := h.Core.Passes()
					h.Core.Hang(passes)
					start := time.Now()
					_, errText := h.call(tt.call, tt.req)
					if first, _, _ := strings.Cut(errText, "\n"); first != tt.want { // what could not be taken back follows
						t.Errorf("got error %q, want %q", errText, tt.want)
					}
					if took := time.Since(start); took < 7*time.Second || took > 10*time.Second {
						t.Errorf("took %v", took)
					}
					endpoints := h.Store.Endpoints()
					if n := len(h.Store.Networks()); n != 1 || len(endpoints) != tt.left || len(h.Links.Veths()) != 1 || len(endpoints[0].Publishes) > 0 {
						t.Errorf("left: %d networks, %+v, %v", n, endpoints, h.Links.Veths())
					}
					if got := h.Core.Passes() - before; passes == 1 && got != 1 {
						t.Errorf("%d passes after the one that hung", got)
					}
				})
			})
		}
	}
}

func TestLabelsAreWaitedForBriefly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t)
		h.network(nil)
		h.Labels.Set(true, true)
		start := time.Now()
		h.joined(epA, "172.19.0.2/16")
		if took := time.Since(start); took != 200*time.Millisecond {
			t.Errorf("took %v", took)
		}
		h.Labels.Set(false, true)
		start = time.Now()
		h.joined(epB, "172.19.0.3/16")
		if took := time.Since(start); took != 0 {
			t.Errorf("at boot, took %v", took)
		}
	})
}

// brokenCore hangs or panics without looking at the context.
type brokenCore struct {
	*drivertest.Core
	release <-chan struct{} // nil: panics
}

func (c brokenCore) Sync(context.Context, ...string) error {
	if c.release == nil {
		panic("the core is broken")
	}
	<-c.release
	return nil
}

func TestHungAndPanickingHandlersAreAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t)
		release := make(chan struct{})
		o := h.Options()
		o.Core = brokenCore{h.Core, release}
		h.use(o)
		start := time.Now()
		h.fails("CreateNetwork", networkReq(netID, nil), "no result within 10s")
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("took %v", took)
		}
		h.fails("DeleteNetwork", object{"NetworkID": netID}, "waiting for an earlier call about network 0a1b2c3d4e5f: context deadline exceeded")
		close(release)
		synctest.Wait()
		h.ok("DeleteNetwork", object{"NetworkID": netID})
	})
	h := newHarness(t)
	o := h.Options()
	o.Core = brokenCore{h.Core, nil}
	h.use(o)
	for range 2 { // the first leaves no lock behind
		h.fails("CreateNetwork", networkReq("x", nil), "internal error: the core is broken")
		if err := h.Store.DeleteNetwork("x"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugins", "eipnet.sock")
	l, err := driver.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode(); got != fs.ModeSocket|0o600 {
		t.Errorf("mode %v", got)
	}
	if _, err := driver.Listen(path); err == nil || !strings.HasSuffix(err.Error(), "another process answers there") {
		t.Errorf("second listener: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after SIGKILL
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = driver.Listen(path)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("closed, and its file is there: %v", err)
	}

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := driver.Listen(file); err == nil || !strings.HasSuffix(err.Error(), "it exists and is no socket") {
		t.Errorf("on a file: %v", err)
	}
	below := filepath.Join(file, "api.sock") // of whichever socket it is
	if _, err := driver.Listen(below); err == nil || !strings.HasPrefix(err.Error(), "making the folder of socket "+below+": ") {
		t.Errorf("below a file: %v", err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "precious" {
		t.Errorf("the file: %q, %v", got, err)
	}
}

// Both sockets answer, a call that is under way is answered, and then both are gone.
func TestServe(t *testing.T) {
	world := drivertest.New()
	d := driver.New(world.Options())
	dir := t.TempDir()
	var listeners []net.Listener
	var clients []*http.Client
	for _, name := range []string{"a.sock", "b.sock"} {
		path := filepath.Join(dir, name)
		l, err := driver.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		clients = append(clients, &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}}})
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- driver.Serve(ctx, d, listeners...) }()
	post := func(c *http.Client, call, body string) (int, error) {
		resp, err := c.Post("http://plugin.moby.localhost/"+call, "application/json", bytes.NewReader([]byte(body)))
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	for _, c := range clients {
		if status, err := post(c, "Plugin.Activate", ""); status != http.StatusOK {
			t.Errorf("Activate: %d, %v", status, err)
		}
	}

	// A Join that is asking Docker while eipnet is told to stop.
	if err := errors.Join(
		world.Store.PutNetwork(model.Network{ID: netID, Bridge: "b"}),
		world.Store.PutEndpoint(model.Endpoint{ID: epA, NetworkID: netID, Phase: model.Created}),
	); err != nil {
		t.Fatal(err)
	}
	world.Labels.Set(true, true)
	joined := make(chan int, 1)
	go func() {
		status, _ := post(clients[0], "NetworkDriver.Join", `{"NetworkID":"`+netID+`","EndpointID":"`+epA+`"}`)
		joined <- status
	}()
	for world.Labels.Asked() == 0 {
		runtime.Gosched()
	}
	stop()
	if status := <-joined; status != http.StatusOK {
		t.Errorf("Join under way: %d", status)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	for _, name := range []string{"a.sock", "b.sock"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
