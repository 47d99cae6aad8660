package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	datagrams = 50
	chatter   = 200 * time.Millisecond
	retry     = 100 * time.Millisecond
)

// burst sends before it does anything else, as a program would that wants to get out unseen: datagrams
// and a connection attempt in the same instant. It fails when no connection came about. With --stay it
// tries until one does, tells the peer its name, the attempt and how many segments had to be sent again,
// and goes on talking by both until it is ended by a signal.
func burst(args []string) error {
	flags := flag.NewFlagSet("burst", flag.ContinueOnError)
	stay := flags.Bool("stay", false, "keep talking")
	name := flags.String("name", "burst", "what to tell the peer")
	if err := flags.Parse(args); err != nil {
		return err
	}
	addr, err := one(flags.Args(), "ADDR")
	if err != nil {
		return err
	}
	connected := make(chan error, 1)
	var session *net.TCPConn
	go func() {
		c, err := net.DialTimeout("tcp", addr, answerTimeout)
		if err == nil {
			session = c.(*net.TCPConn)
		}
		connected <- err
	}()
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	sent := 0
	for i := range datagrams {
		if _, err := fmt.Fprintf(c, "%s datagram %d", *name, i); err == nil {
			sent++
		}
	}
	fmt.Println("sent", sent)
	err = <-connected
	if !*stay {
		if err != nil {
			return err
		}
		return session.Close()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	for attempt := 1; ; attempt++ {
		if err == nil {
			err = talk(ctx, session, c, *name, attempt)
		}
		fmt.Println("attempt", attempt, err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
		var again net.Conn
		if again, err = net.DialTimeout("tcp", addr, answerTimeout); err == nil {
			session = again.(*net.TCPConn)
		}
	}
}

// talk goes on until the session breaks or ctx ends.
func talk(ctx context.Context, session *net.TCPConn, datagrams net.Conn, name string, attempt int) error {
	defer session.Close()
	retransmits, err := retransmits(session)
	if err != nil {
		return err
	}
	in := bufio.NewReader(session)
	if err := readLine(session, in); err != nil { // the greeting
		return err
	}
	line := fmt.Sprintf("%s attempt=%d retransmits=%d\n", name, attempt, retransmits)
	for {
		if _, err := session.Write([]byte(line)); err != nil {
			return err
		}
		if err := readLine(session, in); err != nil {
			return err
		}
		line = name + " goes on\n"
		// A datagram that cannot be sent is a lost one.
		_, _ = datagrams.Write([]byte(line))
		select {
		case <-ctx.Done():
			return errors.New("ended by a signal")
		case <-time.After(chatter):
		}
	}
}

// retransmits is how many segments of the connection were sent again so far, its SYN included.
func retransmits(c *net.TCPConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var info *unix.TCPInfo
	var ierr error
	err = raw.Control(func(fd uintptr) { info, ierr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err := errors.Join(err, ierr); err != nil {
		return 0, err
	}
	return info.Total_retrans, nil
}
