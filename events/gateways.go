package events

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// transport speaks HTTP over a unix socket, and mends answers about networks:
// engines up to 28.0.1 tell the IPv6 gateway of a network that was made without
// a subnet as "fd00::1/64", until they are started again (moby PR 49520). The
// client cannot read that, and one such network would hide all of them.
type transport struct{ *http.Transport }

func newTransport(path string) transport {
	return transport{&http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: identifyTimeout}).DialContext(ctx, "unix", path)
		},
		DisableCompression:  true,
		MaxIdleConnsPerHost: 2 * inspections,
		IdleConnTimeout:     30 * time.Second,
	}}
}

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := t.Transport.RoundTrip(r)
	if err == nil && strings.Contains(r.URL.Path, "/networks") {
		answer.Body = &mended{ReadCloser: answer.Body}
	}
	return answer, err
}

var gatewayWithLength = regexp.MustCompile(`("Gateway":\s*"[0-9A-Fa-f:.]+)/[0-9]+"`)

// mended reads the whole answer before it gives away the first byte.
type mended struct {
	io.ReadCloser
	whole *bytes.Reader
}

func (m *mended) Read(p []byte) (int, error) {
	if m.whole == nil {
		all, err := io.ReadAll(m.ReadCloser)
		if err != nil {
			return 0, err
		}
		m.whole = bytes.NewReader(gatewayWithLength.ReplaceAll(all, []byte(`$1"`)))
	}
	return m.whole.Read(p)
}
