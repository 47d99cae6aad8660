package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/eipnet/eipnet/nicdial"
)

// egressTimeout is short: a cloud that drops packets answers nothing at all.
const egressTimeout = 3 * time.Second

// serve answers HTTP and UDP on one port number, and TCP lines on the next.
func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	addr := flags.String("addr", ":8080", "where to listen")
	echo := flags.String("echo", "http://198.51.100.10/ip", "what tells the source address that it saw")
	nic := flags.String("nic", "", "ask by this NIC, through package nicdial")
	from := flags.String("from", "", "ask from this address")
	if err := flags.Parse(args); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(*addr)
	if err != nil {
		return fmt.Errorf("reading --addr: %w", err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return fmt.Errorf("reading --addr: %w", err)
	}
	client := &http.Transport{DisableKeepAlives: true}
	if *nic != "" {
		n, err := nicdial.New(*nic)
		if err != nil {
			return err
		}
		client = n.Transport()
		client.DisableKeepAlives = true
	}
	if *from != "" {
		client.DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(*from)}}).DialContext
	}
	// init of a PID namespace is ended by no signal that it does not handle.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var lc net.ListenConfig
	web, err := lc.Listen(ctx, "tcp", *addr)
	if err != nil {
		return err
	}
	lines, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(n+1)))
	if err != nil {
		return err
	}
	datagrams, err := lc.ListenPacket(ctx, "udp", *addr)
	if err != nil {
		return err
	}
	failed := make(chan error, 3)
	go func() { failed <- http.Serve(web, handler(client, *echo)) }()
	go func() { failed <- echoLines(lines) }()
	go func() { failed <- echoDatagrams(datagrams) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

func handler(client *http.Transport, echo string) http.Handler {
	text := func(w http.ResponseWriter, s string) {
		w.Header().Set("Content-Type", "text/plain")
		fmt.Fprint(w, s)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		egress, err := fetch(r.Context(), client, echo, egressTimeout)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		text(w, egress)
	})
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) { text(w, "hello") })
	mux.HandleFunc("GET /remote", func(w http.ResponseWriter, r *http.Request) { text(w, r.RemoteAddr) })
	return mux
}

// fetch gets a URL on a fresh connection.
func fetch(ctx context.Context, transport *http.Transport, url string, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), nil
}

// echoLines says who the client is, then gives every line back for as long as the client likes.
func echoLines(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if _, err := fmt.Fprintln(c, c.RemoteAddr()); err != nil {
				return
			}
			for in := bufio.NewScanner(c); in.Scan(); {
				if _, err := fmt.Fprintln(c, in.Text()); err != nil {
					return
				}
			}
		}()
	}
}

func echoDatagrams(c net.PacketConn) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, syscall.ECONNREFUSED) {
			continue
		}
		if err != nil {
			return err
		}
		// An answer that cannot be sent is a lost datagram.
		_, _ = c.WriteTo(fmt.Appendf(nil, "%s %s", from, buf[:n]), from)
	}
}
