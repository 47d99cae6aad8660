package driver_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/eipnet/eipnet/driver"
	"github.com/eipnet/eipnet/driver/drivertest"
	"github.com/eipnet/eipnet/internal/model"
)

const (
	netID = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
	epA   = "aaaaaaaaaaaabbbbbbbbbbbbccccccccccccddddddddddddeeeeeeeeeeeeffff"
	epB   = "bbbbbbbbbbbbaaaaaaaaaaaaccccccccccccddddddddddddeeeeeeeeeeeeffff"
)

type object = map[string]any

// harness is dockerd's side of the protocol.
type harness struct {
	*drivertest.World
	t       *testing.T
	driver  *driver.Driver
	handler http.Handler
	log     syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{World: drivertest.New(), t: t}
	o := h.Options()
	o.Log = slog.New(slog.NewTextHandler(&h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.use(o)
	return h
}

// use makes the driver anew.
func (h *harness) use(o driver.Options) {
	h.driver = driver.New(o)
	h.handler = h.driver.Handler()
}

// raw posts a body and returns status and answer.
func (h *harness) raw(path, body string) (int, string) {
	h.t.Helper()
	w := httptest.NewRecorder()
	h.handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
	if got := w.Header().Get("Content-Type"); got != "application/vnd.docker.plugins.v1.2+json" {
		h.t.Errorf("%s: content type %q", path, got)
	}
	return w.Code, strings.TrimSpace(w.Body.String())
}

// call makes a call and returns its answer, and its error's text if it failed.
func (h *harness) call(name string, req object) (answer, errText string) {
	h.t.Helper()
	body, err := json.Marshal(req)
	if err != nil {
		h.t.Fatal(err)
	}
	status, answer := h.raw("/NetworkDriver."+name, string(body))
	var e struct{ Err string }
	if err := json.Unmarshal([]byte(answer), &e); err != nil {
		h.t.Fatalf("%s: answer %q: %v", name, answer, err)
	}
	if (status == http.StatusOK) != (e.Err == "") {
		h.t.Errorf("%s: status %d with answer %s", name, status, answer)
	}
	return answer, e.Err
}

// ok makes a call that has to succeed.
func (h *harness) ok(name string, req object) string {
	h.t.Helper()
	answer, errText := h.call(name, req)
	if errText != "" {
		h.t.Fatalf("%s failed: %s", name, errText)
	}
	return answer
}

// fails makes a call that has to fail with exactly this text.
func (h *harness) fails(name string, req object, want string) {
	h.t.Helper()
	if _, errText := h.call(name, req); errText != want {
		h.t.Errorf("%s:\n got error %q\nwant error %q", name, errText, want)
	}
}

func (h *harness) endpoint(id string) model.Endpoint {
	h.t.Helper()
	e, ok := h.Store.Endpoint(id)
	if !ok {
		h.t.Fatalf("endpoint %s is not stored", id)
	}
	return e
}

func networkReq(id string, generic object) object {
	return object{
		"NetworkID": id,
		"Options":   object{"com.docker.network.enable_ipv4": true, "com.docker.network.enable_ipv6": false, "com.docker.network.generic": generic},
		"IPv4Data":  []object{{"AddressSpace": "LocalDefault", "AuxAddresses": object{}, "Pool": "172.19.0.0/16", "Gateway": "172.19.0.1/16"}},
	}
}

func endpointReq(network, id, addr string, options object) object {
	return object{"NetworkID": network, "EndpointID": id, "Interface": object{"Address": addr}, "Options": options}
}

func ref(network, id string) object { return object{"NetworkID": network, "EndpointID": id} }

func joinReq(id string) object {
	return object{"NetworkID": netID, "EndpointID": id, "SandboxKey": "/var/run/docker/netns/abc", "Options": object{"com.docker.network.portmap": ports(tcp(8090, 8080))}}
}

func programReq(id string, ports any) object {
	return object{"NetworkID": netID, "EndpointID": id, "Options": object{"com.docker.network.portmap": ports, "com.docker.network.driver.private.no_proxy_6to4": false}}
}

func ports(p ...object) []object { return p }

func tcp(host, container int) object { return binding(6, "", host, host, container) }

func binding(proto int, ip string, first, last, container int) object {
	return object{"Proto": proto, "IP": "", "Port": container, "HostIP": ip, "HostPort": first, "HostPortEnd": last}
}

// network makes the usual network.
func (h *harness) network(generic object) {
	h.t.Helper()
	h.ok("CreateNetwork", networkReq(netID, generic))
}

// joined makes an endpoint of the usual network and joins it.
func (h *harness) joined(id, addr string) {
	h.t.Helper()
	h.ok("CreateEndpoint", endpointReq(netID, id, addr, nil))
	h.ok("Join", joinReq(id))
}
