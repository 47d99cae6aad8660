package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"strings"
)

// socketProxy stands in for the image wollomatic/socket-proxy: the same flags, as far as the Compose
// example uses them. It passes on to Docker what the lists allow, and refuses everything else.
func socketProxy(args []string) error {
	flags := flag.NewFlagSet("socket-proxy", flag.ContinueOnError)
	endpoint := flags.String("proxysocketendpoint", "", "unix socket to listen on")
	allowed := make(map[string][]*regexp.Regexp)
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		flags.Func("allow"+method, "paths", func(pattern string) error {
			re, err := regexp.Compile("^(?:" + pattern + ")$")
			allowed[method] = append(allowed[method], re)
			return err
		})
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := os.Remove(*endpoint); err != nil && !errors.Is(err, os.ErrNotExist) { // of an earlier one
		return err
	}
	l, err := net.Listen("unix", *endpoint)
	if err != nil {
		return err
	}
	docker := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "docker"})
	docker.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", "/var/run/docker.sock")
	}}
	docker.FlushInterval = -1
	err = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, re := range allowed[r.Method] {
			if re.MatchString(r.URL.Path) {
				docker.ServeHTTP(w, r)
				return
			}
		}
		fmt.Println("refused", r.Method, strings.ReplaceAll(r.URL.Path, "\n", ""))
		http.Error(w, "refused", http.StatusForbidden)
	}))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
