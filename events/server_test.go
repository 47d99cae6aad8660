package events

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// object is JSON as Docker's API has it.
type object = map[string]any

// plainImage is what containers are made of if nothing else is said.
const plainImage = "sha256:plain"

// gate holds requests up until it is opened.
type gate struct {
	reached, opened chan struct{}
	reach, open     func()
}

// dockerServer is a fake Docker on a unix socket: containers, networks with
// their endpoints, and the event stream. Silent, it accepts and does not answer.
type dockerServer struct {
	t    *testing.T
	path string

	mu         sync.Mutex
	version    string
	api        string
	security   []string
	containers map[string]object // by id
	networks   map[string]object // by id, "Containers" inside
	swarm      map[string]object // by id: in the list in place of that, as a swarm's manager has it
	images     map[string]object // labels by image id
	failing    map[string]int    // status by path, version cut off
	streams    map[chan object]bool
	requests   []string         // "GET /networks?…", version cut off
	gates      map[string]*gate // by request as in requests
	silent     chan struct{}
	http       *httptest.Server
}

func newDocker(t *testing.T) *dockerServer {
	t.Helper()
	d := &dockerServer{
		t:          t,
		path:       filepath.Join(t.TempDir(), "docker.sock"),
		version:    "28.5.2",
		api:        "1.51",
		containers: map[string]object{},
		networks:   map[string]object{},
		images:     map[string]object{plainImage: {}},
		gates:      map[string]*gate{},
		failing:    map[string]int{},
		streams:    map[chan object]bool{},
	}
	d.start()
	t.Cleanup(d.stop)
	return d
}

func (d *dockerServer) host() string { return "unix://" + d.path }

func (d *dockerServer) start() {
	d.t.Helper()
	l, err := net.Listen("unix", d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	d.http = &httptest.Server{Listener: l, Config: &http.Server{Handler: d}}
	d.http.Start()
}

// stop breaks all connections and removes the socket, as a dying dockerd does.
func (d *dockerServer) stop() {
	d.answer()
	_ = d.http.Listener.Close() // or Close would wait for a stream that was opened in between
	d.http.CloseClientConnections()
	d.http.Close()
}

func (d *dockerServer) hush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.silent = make(chan struct{})
}

func (d *dockerServer) answer() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.silent != nil {
		close(d.silent)
		d.silent = nil
	}
}

// gate holds up all requests like "GET /networks?" from now on.
func (d *dockerServer) gate(request string) *gate {
	g := &gate{reached: make(chan struct{}), opened: make(chan struct{})}
	g.reach, g.open = sync.OnceFunc(func() { close(g.reached) }), sync.OnceFunc(func() { close(g.opened) })
	d.change(func() { d.gates[request] = g })
	d.t.Cleanup(g.open)
	return g
}

func (d *dockerServer) change(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn()
}

// emit sends an event to all who listen.
func (d *dockerServer) emit(kind, action, id string, attributes map[string]string) {
	d.mu.Lock()
	streams := slices.Collect(maps.Keys(d.streams))
	d.mu.Unlock()
	for _, c := range streams {
		select {
		case c <- object{"Type": kind, "Action": action, "Actor": object{"ID": id, "Attributes": attributes}}:
		case <-time.After(5 * time.Second):
			d.t.Error("nobody reads the events")
		}
	}
}

// count returns how many requests contain the text.
func (d *dockerServer) count(text string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, r := range d.requests {
		if strings.Contains(r, text) {
			n++
		}
	}
	return n
}

var versionPrefix = regexp.MustCompile(`^/v1\.[0-9]+`)

func (d *dockerServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := versionPrefix.ReplaceAllString(r.URL.Path, "")
	request := r.Method + " " + path + "?" + r.URL.Query().Encode()
	d.mu.Lock()
	d.requests = append(d.requests, request)
	silent, status, g := d.silent, d.failing[path], d.gates[request]
	d.mu.Unlock()
	if g != nil {
		g.reach()
		select {
		case <-g.opened:
		case <-r.Context().Done():
			return
		}
	}
	if silent != nil {
		select {
		case <-silent:
		case <-r.Context().Done():
			return
		}
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		d.t.Errorf("%s %s", r.Method, path)
	}
	w.Header().Set("Api-Version", d.api)
	w.Header().Set("Content-Type", "application/json")
	if status != 0 {
		reply(w, status, object{"message": "broken on purpose"})
		return
	}
	if path == "/events" {
		d.stream(w, r)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	id, isNetwork := strings.CutPrefix(path, "/networks/")
	one := strings.TrimSuffix(strings.TrimPrefix(path, "/containers/"), "/json")
	image := strings.TrimSuffix(strings.TrimPrefix(path, "/images/"), "/json")
	switch {
	case path == "/_ping":
	case path == "/version":
		reply(w, http.StatusOK, object{"Version": d.version, "ApiVersion": d.api})
	case path == "/info":
		reply(w, http.StatusOK, object{"SecurityOptions": d.security, "OperatingSystem": "Debian GNU/Linux"})
	case path == "/networks":
		all := maps.Clone(d.networks)
		maps.Copy(all, d.swarm)
		reply(w, http.StatusOK, slices.Collect(maps.Values(all)))
	case isNetwork && d.networks[id] != nil:
		reply(w, http.StatusOK, d.networks[id])
	case d.images[image] != nil:
		reply(w, http.StatusOK, object{"Id": image, "Config": object{"Labels": d.images[image]}})
	case path == "/containers/json":
		reply(w, http.StatusOK, d.list(r))
	case d.containers[one] != nil:
		reply(w, http.StatusOK, d.one(one))
	default:
		reply(w, http.StatusNotFound, object{"message": path + " not found"})
	}
}

// list filters containers as Docker does: ids by their beginning, names by a
// regular expression, against the name with and without its slash.
func (d *dockerServer) list(r *http.Request) []object {
	var filters struct {
		Name, ID map[string]bool
	}
	if f := r.URL.Query().Get("filters"); f != "" {
		if err := json.Unmarshal([]byte(f), &filters); err != nil {
			d.t.Errorf("filters %s: %v", f, err)
		}
	}
	out := []object{}
	for id, c := range d.containers {
		matches := len(filters.Name)+len(filters.ID) == 0
		for pattern := range filters.Name {
			re := regexp.MustCompile(pattern)
			name := c["Names"].([]string)[0]
			matches = matches || re.MatchString(name) || re.MatchString(strings.TrimPrefix(name, "/"))
		}
		for prefix := range filters.ID {
			matches = matches || strings.HasPrefix(id, prefix)
		}
		if matches {
			out = append(out, d.summary(c))
		}
	}
	return out
}

// summary is a container with the networks that it is in, unless something else was set.
func (d *dockerServer) summary(c object) object {
	networks := object{}
	for id, n := range d.networks {
		attached := n["Containers"].(object)
		a, ok := attached[c["Id"].(string)].(object)
		for key, joins := range attached {
			if ok {
				break
			}
			a = joins.(object)
			ok = strings.HasPrefix(key, "ep-") && "/"+a["Name"].(string) == c["Names"].([]string)[0]
		}
		if ok {
			networks[n["Name"].(string)] = object{"NetworkID": id, "DriverOpts": a["options"]}
		}
	}
	out := object{"ImageID": plainImage, "NetworkSettings": object{"Networks": networks}}
	maps.Copy(out, c)
	return out
}

// one is a container as it is told alone: with what its endpoints were "given".
func (d *dockerServer) one(id string) object {
	networks := object{}
	for network, n := range d.networks {
		if a, ok := n["Containers"].(object)[id].(object); ok {
			networks[n["Name"].(string)] = object{"NetworkID": network, "EndpointID": a["EndpointID"], "DriverOpts": a["given"]}
		}
	}
	return object{"Id": id, "NetworkSettings": object{"Networks": networks}}
}

func (d *dockerServer) stream(w http.ResponseWriter, r *http.Request) {
	c := make(chan object)
	d.change(func() { d.streams[c] = true })
	defer d.change(func() { delete(d.streams, c) })
	out := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	_ = out.Flush()
	enc := json.NewEncoder(w)
	for {
		select {
		case <-r.Context().Done():
			return
		case e := <-c:
			if enc.Encode(e) != nil || out.Flush() != nil {
				return
			}
		}
	}
}

func reply(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// addContainer adds a container as docker create does, with its event.
func (d *dockerServer) addContainer(id, name string, labels map[string]string) {
	d.change(func() {
		d.containers[id] = object{"Id": id, "Names": []string{"/" + name}, "Labels": labels, "State": "created"}
	})
	attributes := maps.Clone(labels)
	if attributes == nil {
		attributes = map[string]string{}
	}
	attributes["name"], attributes["image"] = name, "busybox" // over labels of that name, as Docker does
	d.emit("container", "create", id, attributes)
}

// set changes what Docker says of a container.
func (d *dockerServer) set(id, key string, value any) {
	d.change(func() {
		c := maps.Clone(d.containers[id])
		c[key] = value
		d.containers[id] = c
	})
}

func (d *dockerServer) addNetwork(id string, n object) {
	d.change(func() {
		n["Id"] = id
		n["Containers"] = object{}
		d.networks[id] = n
	})
}

// attach adds an endpoint under a key: "ep-…" during Join, the container's id later.
func (d *dockerServer) attach(network, key, endpoint, name string) {
	d.attachWith(network, key, object{"EndpointID": endpoint, "Name": name, "MacAddress": "", "IPv4Address": "172.19.0.2/16", "IPv6Address": ""})
}

// attachWith takes the endpoint as the network tells it, and its driver "options".
func (d *dockerServer) attachWith(network, key string, endpoint object) {
	d.change(func() {
		attached := maps.Clone(d.networks[network]["Containers"].(object))
		attached[key] = endpoint
		n := maps.Clone(d.networks[network])
		n["Containers"] = attached
		d.networks[network] = n
	})
}

// connect attaches a container to a network as a start does, with its event.
func (d *dockerServer) connect(network, id, endpoint, name string) {
	d.attach(network, id, endpoint, name)
	d.emit("network", "connect", network, map[string]string{"container": id, "name": "n", "type": "bridge"})
}

// running is a Watcher in a test.
type running struct {
	*Watcher
	t     *testing.T
	pokes chan struct{} // one waits at most
	urges atomic.Int32  // how often Urgent was called
	stop  func()        // ends Run and waits for it
}

func run(t *testing.T, host string) *running {
	t.Helper()
	r := &running{t: t, Watcher: New(Options{Host: host})}
	r.start()
	return r
}

func (r *running) start() {
	r.pokes = make(chan struct{}, 1)
	r.poke = func() {
		select {
		case r.pokes <- struct{}{}:
		default:
		}
	}
	r.Watcher.urgent = func() {
		r.urges.Add(1)
		r.poke()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
	r.t.Cleanup(r.stop)
}

// until waits, from poke to poke, for something to hold.
func (r *running) until(what string, holds func() bool) {
	r.t.Helper()
	deadline := time.After(10 * time.Second)
	for !holds() {
		select {
		case <-r.pokes:
		case <-deadline:
			r.t.Fatalf("not in time: %s; problems %v", what, r.Problems())
		}
	}
}

func (r *running) untilUp() {
	r.t.Helper()
	r.until("up", r.Up)
}
