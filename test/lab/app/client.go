package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// answerTimeout bounds the wait for one answer.
const answerTimeout = 3 * time.Second

// one returns the only argument.
func one(args []string, what string) (string, error) {
	if len(args) != 1 {
		return "", fmt.Errorf("want one argument: %s", what)
	}
	return args[0], nil
}

func get(args []string) error {
	url, err := one(args, "URL")
	if err != nil {
		return err
	}
	body, err := fetch(context.Background(), &http.Transport{DisableKeepAlives: true}, url, answerTimeout)
	if err != nil {
		return err
	}
	fmt.Println(body)
	return nil
}

func udp(args []string) error {
	if len(args) != 2 {
		return errors.New("want ADDR PAYLOAD")
	}
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	return exchange(c, args[1])
}

// exchange sends one datagram and prints the answer.
func exchange(c net.Conn, payload string) error {
	if _, err := c.Write([]byte(payload)); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil {
		return err
	}
	fmt.Println(string(buf[:n]))
	return nil
}

// tcp prints the server's greeting; with --hold it sends a line again and again and prints every echo,
// until it is ended by a signal or the session breaks.
func tcp(args []string) error {
	flags := flag.NewFlagSet("tcp", flag.ContinueOnError)
	hold := flags.Bool("hold", false, "keep the session")
	interval := flags.Duration("interval", 100*time.Millisecond, "time between two lines")
	var addr string
	// The address may stand before the flags.
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		addr, args = args[0], args[1:]
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if addr == "" {
		addr = flags.Arg(0)
	}
	c, err := net.DialTimeout("tcp", addr, answerTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	in := bufio.NewReader(c)
	if err := readLine(c, in); err != nil || !*hold {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	tick := time.NewTicker(*interval)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, err := fmt.Fprintf(c, "line %d\n", i); err != nil {
			return err
		}
		if err := readLine(c, in); err != nil {
			return err
		}
	}
}

func readLine(c net.Conn, in *bufio.Reader) error {
	if err := c.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	line, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Print(line)
	return nil
}

// ping sends one ICMP echo request through a raw socket and waits for its answer.
func ping(args []string) error {
	text, err := one(args, "ADDR")
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return err
	}
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if addr.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := net.DialIP(network, nil, &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()})
	if err != nil {
		return err
	}
	defer c.Close()
	id := uint16(os.Getpid()) ^ uint16(time.Now().UnixNano())
	msg := append([]byte{request, 0, 0, 0}, 0, 0, 0, 1)
	binary.BigEndian.PutUint16(msg[4:], id)
	msg = append(msg, "eipnet lab ping "...)
	if addr.Is4() { // the kernel fills in the checksum of ICMPv6
		binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	}
	start := time.Now()
	if _, err := c.Write(msg); err != nil {
		return err
	}
	if err := c.SetReadDeadline(start.Add(answerTimeout)); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := c.ReadFromIP(buf) // unlike Read, it leaves the IPv4 header out
		if err != nil {
			return err
		}
		msg := buf[:n]
		if addr.Is4() && n > 0 { // Read leaves the IPv4 header on
			msg = msg[min(n, int(buf[0]&0xf)*4):]
		}
		if len(msg) >= 8 && msg[0] == reply && binary.BigEndian.Uint16(msg[4:]) == id {
			fmt.Printf("%s %s\n", addr, time.Since(start))
			return nil
		}
	}
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum + sum>>16)
}

func lookup(args []string) error {
	name, err := one(args, "NAME")
	if err != nil {
		return err
	}
	return resolve(net.DefaultResolver, name)
}

func resolve(r *net.Resolver, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*answerTimeout)
	defer cancel()
	addrs, err := r.LookupNetIP(ctx, "ip4", name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		fmt.Println(a)
	}
	return nil
}

// stream sends datagrams until a signal ends it, each from a socket of its own, so that each one is a new
// connection to firewalls. What cannot be sent is passed over: the next one may.
func stream(args []string) error {
	flags := flag.NewFlagSet("stream", flag.ContinueOnError)
	interval := flags.Duration("interval", 5*time.Millisecond, "time between two datagrams")
	if err := flags.Parse(args); err != nil {
		return err
	}
	addr, err := one(flags.Args(), "ADDR")
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	tick := time.NewTicker(*interval)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		c, err := net.Dial("udp", addr)
		if err != nil {
			continue
		}
		_, _ = fmt.Fprintf(c, "stream %d", n)
		_ = c.Close()
	}
}

func sleep([]string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	<-ctx.Done()
	return nil
}
