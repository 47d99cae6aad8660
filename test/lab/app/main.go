// Command app runs in the lab's containers: the server whose egress address is in question, and small
// clients. It is static and needs nothing in its image.
package main

import (
	"fmt"
	"os"
)

const usage = `usage: app serve [--addr :8080] [--echo http://198.51.100.10/ip] [--nic NIC] [--from ADDRESS]
       app get URL | udp ADDR PAYLOAD | tcp [--hold] [--interval 100ms] ADDR | ping ADDR
       app lookup NAME | burst [--stay] [--name NAME] ADDR | stream [--interval 5ms] ADDR | sleep
       app socket-proxy -proxysocketendpoint SOCKET -allowGET PATTERN ...
       app nic NIC check | get URL | udp ADDR PAYLOAD | lookup NAME | serve ADDR   (through package nicdial)`

func main() {
	if len(os.Args) < 2 {
		os.Args = append(os.Args, "serve")
	}
	commands := map[string]func([]string) error{
		"serve": serve, "get": get, "udp": udp, "tcp": tcp, "ping": ping, "lookup": lookup, "burst": burst, "stream": stream, "sleep": sleep, "nic": nic,
		"socket-proxy": socketProxy,
	}
	command, ok := commands[os.Args[1]]
	if !ok {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err := command(os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}
