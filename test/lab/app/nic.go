package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/signal"
	"syscall"

	"github.com/eipnet/eipnet/nicdial"
)

// nic does what the other commands do, through package nicdial.
func nic(args []string) error {
	if len(args) < 2 {
		return errors.New("want NIC COMMAND")
	}
	n, err := nicdial.New(args[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*answerTimeout)
	defer cancel()
	switch command, args := args[1], args[2:]; {
	case command == "check":
		return n.Check()
	case command == "get" && len(args) == 1:
		transport := n.Transport()
		transport.DisableKeepAlives = true
		body, err := fetch(ctx, transport, args[0], answerTimeout)
		if err == nil {
			fmt.Println(body)
		}
		return err
	case command == "udp" && len(args) == 2:
		c, err := n.DialContext(ctx, "udp", args[0])
		if err != nil {
			return err
		}
		defer c.Close()
		return exchange(c, args[1])
	case command == "lookup" && len(args) == 1:
		return resolve(n.Resolver(), args[0])
	case command == "serve" && len(args) == 1:
		return serveNIC(n, args[0])
	}
	return errors.New("no such command")
}

// serveNIC answers HTTP and UDP on sockets that live on the NIC.
func serveNIC(n *nicdial.NIC, addr string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	l, err := n.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	c, err := n.ListenPacket(ctx, "udp", addr)
	if err != nil {
		return err
	}
	transport := n.Transport()
	transport.DisableKeepAlives = true
	failed := make(chan error, 2)
	go func() { failed <- http.Serve(l, handler(transport, "http://198.51.100.10/ip")) }()
	go func() { failed <- echoDatagrams(c) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}
