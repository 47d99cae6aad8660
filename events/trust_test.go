package events

import (
	"bytes"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eipnet/eipnet/internal/model"
)

const labelledImage = "sha256:labelled"

// newLabelledDocker has a container of an image with labels on a driver network.
func newLabelledDocker(t *testing.T, labels map[string]string) *dockerServer {
	t.Helper()
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "n", "Driver": "eipnet"})
	d.change(func() { d.images[labelledImage] = object{"eip.nic": "eth2", "eip.fallback": "host", "other": "x"} })
	d.addContainer(con1, "app", labels)
	d.set(con1, "ImageID", labelledImage)
	d.attach(net1, con1, end1, "app")
	return d
}

func TestImageLabels(t *testing.T) {
	for _, test := range []struct {
		name    string
		labels  map[string]string // as Docker lists them: the image's, overridden by the container's
		want    map[string]string
		ignored []string
	}{
		{"of the image", map[string]string{"eip.nic": "eth2", "eip.fallback": "host"}, nil, []string{"eip.fallback=host", "eip.nic=eth2"}},
		{"overridden", map[string]string{"eip.nic": "eth1", "eip.fallback": "host"}, pinned, []string{"eip.fallback=host"}},
		// Nobody can tell whether --label eip.nic=eth2 was given or not.
		{"given with the image's value", map[string]string{"eip.nic": "eth2", "eip.fallback": "hold"}, map[string]string{"eip.fallback": "hold"}, []string{"eip.nic=eth2"}},
		{"another key in other case", map[string]string{"eip.nic": "eth2", "EIP.NIC": "eth2"}, map[string]string{"EIP.NIC": "eth2"}, []string{"eip.nic=eth2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newLabelledDocker(t, test.labels)
			w := run(t, d.host())
			w.untilUp()
			want := model.Container{Known: true, ID: con1, Name: "app", Labels: test.want, Ignored: test.ignored}
			if diff := cmp.Diff(want, w.View().Containers[end1]); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			got, err := w.Container(t.Context(), net1, end1)
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
			if n := d.count("/images/"); n != 1 {
				t.Errorf("asked %d times about one image", n)
			}
		})
	}
}

// TestImageGone: labels that cannot be told from the image's are not followed,
// and it is said once.
func TestImageGone(t *testing.T) {
	for name, status := range map[string]int{"gone": 404, "broken": 500} {
		t.Run(name, func(t *testing.T) {
			d := newLabelledDocker(t, pinned)
			d.change(func() { d.failing["/images/"+labelledImage+"/json"] = status })
			var log lockedBuffer
			r := &running{t: t}
			w := New(Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Host: d.host()})
			r.Watcher = w
			r.start()
			r.untilUp()
			if diff := cmp.Diff(model.Container{ID: con1, Name: "app"}, w.View().Containers[end1]); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if c, err := w.Container(t.Context(), net1, end1); !errors.Is(err, ErrUntrusted) || errors.Is(err, ErrUnknown) || c.Known {
				t.Errorf("%+v, %v", c, err)
			}
			for i := range 3 {
				at := w.View().At
				d.emit("network", "create", strconv.Itoa(i), nil)
				r.until("another list", func() bool { return w.View().At.After(at) })
			}
			if n := strings.Count(log.String(), "container held"); n != 1 {
				t.Errorf("logged %d times:\n%s", n, log.String())
			}
			d.change(func() { clear(d.failing) })
			d.emit("network", "create", "last", nil)
			r.until("image readable", func() bool { return w.View().Containers[end1].Known })
		})
	}
}

// TestImageError: what fails in passing is asked again without an event.
func TestImageError(t *testing.T) {
	d := newLabelledDocker(t, pinned)
	d.change(func() { d.failing["/images/"+labelledImage+"/json"] = 500 })
	w := run(t, d.host())
	w.untilUp()
	w.until("it to be asked in vain", func() bool { return d.count("GET /images/") > 0 })
	d.change(func() { clear(d.failing) })
	w.until("image readable", func() bool { return w.View().Containers[end1].Known })
}

// TestImageNeverReadable: lists are not made for ever.
func TestImageNeverReadable(t *testing.T) {
	d := newLabelledDocker(t, pinned)
	d.change(func() { d.failing["/images/"+labelledImage+"/json"] = 500 })
	w := run(t, d.host())
	asked := func() int { return d.count("GET /images/") }
	w.until("patience", func() bool { return asked() > patience })
	select { // nothing happens: there is no condition to wait for
	case <-time.After(3 * listInterval):
	case <-t.Context().Done():
	}
	if n := asked(); n != patience+1 {
		t.Errorf("asked %d times", n)
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestJoinCosts: what Docker is asked while a Join is answered.
func TestJoinCosts(t *testing.T) {
	d := newDocker(t)
	d.addNetwork(net1, object{"Name": "n", "Driver": "eipnet"})
	w := run(t, d.host())
	w.untilUp()
	ask := func(id, endpoint, name string, labels map[string]string) int {
		t.Helper()
		d.addContainer(id, name, labels)
		d.attach(net1, "ep-"+endpoint, endpoint, name)
		w.cacheHas(id)
		if len(labels) > 0 {
			w.imageKnown(id)
		}
		before := d.count("")
		if c, err := w.Container(t.Context(), net1, endpoint); err != nil || !c.Known || c.ID != id {
			t.Errorf("%+v, %v", c, err)
		}
		return d.count("") - before
	}
	if n := ask(con1, end1, "plain", nil); n != 1 || d.count("/images/") > 0 {
		t.Errorf("%d questions about a container without labels", n)
	}
	if n := ask(con2, end2, "labelled", pinned); n != 1 {
		t.Errorf("%d questions about a container that was asked about early", n)
	}
	// Had nothing been asked early, it were three: a name is asked for its image.
	d.change(func() { d.images["sha256:new"] = object{} })
	w.cache.see(create("c3", "third"))
	d.change(func() {
		d.containers["c3"] = object{"Id": "c3", "Names": []string{"/third"}, "Labels": pinned, "ImageID": "sha256:new", "State": "created"}
	})
	d.attach(net1, "ep-end3", "end3", "third")
	before := d.count("")
	if c, err := w.Container(t.Context(), net1, "end3"); err != nil || c.Labels["eip.nic"] != "eth1" {
		t.Errorf("%+v, %v", c, err)
	}
	if n := d.count("") - before; n != 3 {
		t.Errorf("%d questions, want 3: %q", n, d.requests)
	}
}

func TestImagesAreBounded(t *testing.T) {
	var i images
	for n := range maxImages + 10 {
		i.put(strconv.Itoa(n), nil)
	}
	if _, ok := i.get(strconv.Itoa(maxImages + 9)); !ok || len(i.labels) > maxImages {
		t.Errorf("%d images, last there %v", len(i.labels), ok)
	}
}
