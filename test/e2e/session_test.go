package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// session is a long-lived connection over which a line goes back and forth all
// the time, as somebody's SSH session.
type session struct {
	name  string
	conn  net.Conn
	ended chan struct{}

	mu    sync.Mutex
	turns int
	err   error
}

// dialer connects from somewhere in the lab.
type dialer interface {
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
}

// answerTime is how long one turn may take: a few retransmissions of a lost
// segment, no more.
const answerTime = 5 * time.Second

// openSession connects; a server that has just been started is given time to listen.
func openSession(t *testing.T, name string, from dialer, addr string) *session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", addr)
	for ; errors.Is(err, syscall.ECONNREFUSED); conn, err = from.Dial(ctx, "tcp", addr) {
		select {
		case <-ctx.Done():
			t.Fatalf("opening session %s: still refused", name)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err != nil {
		t.Fatalf("opening session %s: %v", name, err)
	}
	s := &session{name: name, conn: conn, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		s.run(t.Context())
	}()
	t.Cleanup(s.end)
	return s
}

// end closes the session: before its container goes, whose address nobody
// answers for then but the host, by its own way.
func (s *session) end() {
	_ = s.conn.Close()
	<-s.ended
}

func (s *session) run(ctx context.Context) {
	in := bufio.NewReader(s.conn)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		line := fmt.Sprintf("turn %d of %s\n", i, s.name)
		err := s.conn.SetDeadline(time.Now().Add(answerTime))
		if err == nil {
			_, err = s.conn.Write([]byte(line))
		}
		for err == nil { // a greeting may come before the first echo
			var got string
			if got, err = in.ReadString('\n'); got == line {
				break
			}
		}
		s.mu.Lock()
		s.turns, s.err = s.turns+1, err
		s.mu.Unlock()
		if err != nil {
			return
		}
		<-tick.C
	}
}

// goesOn fails the test unless the session makes some turns from now on.
func (s *session) goesOn(t *testing.T) {
	t.Helper()
	state := func() (int, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.turns, s.err
	}
	begin, _ := state()
	deadline := time.Now().Add(2 * answerTime)
	for {
		turns, err := state()
		switch {
		case err != nil:
			t.Errorf("session %s broke after %d turns: %v", s.name, turns, err)
			return
		case turns > begin+3:
			return
		case time.Now().After(deadline):
			t.Errorf("session %s hangs after %d turns", s.name, turns)
			return
		}
		<-time.After(5 * time.Millisecond)
	}
}
