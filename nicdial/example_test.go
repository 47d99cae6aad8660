//go:build linux

package nicdial_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/netip"
	"time"

	"github.com/eipnet/eipnet/nicdial"
)

// HTTPGet asks for a URL by the NIC that the client lives on.
func HTTPGet(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// A server on one NIC, whose own requests leave by that NIC: started with
// --nic=172.31.0.8 and --nic=172.31.0.14, each answers on its EIP, and with it.
func Example_server() {
	name := flag.String("nic", "172.31.0.8", "NIC to live on, by name, address or MAC")
	flag.Parse()
	nic, err := nicdial.New(*name)
	if err != nil {
		log.Fatal(err)
	}
	if err := nic.Check(); err != nil {
		log.Print(err) // says what routing is missing
	}
	client := &http.Client{Transport: nic.Transport(), Timeout: 5 * time.Second}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		egress, err := HTTPGet(client, "https://ifconfig.me/ip")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprint(w, egress)
	})
	l, err := nic.Listen(context.Background(), "tcp", ":8090")
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(l, nil))
}

// Every NIC in one program.
func ExampleNIC_Transport() {
	for _, name := range []string{"eth0", "eth1"} {
		nic, err := nicdial.New(name)
		if err != nil {
			log.Fatal(err)
		}
		egress, err := HTTPGet(&http.Client{Transport: nic.Transport()}, "https://ifconfig.me/ip")
		fmt.Println(name, egress, err)
	}
}

// UDP from a NIC, and names that are asked of a name server of one's own choice.
func ExampleWithNameServers() {
	nic, err := nicdial.New("eth1", nicdial.WithNameServers(netip.MustParseAddrPort("9.9.9.9:53")))
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	addrs, err := nic.Resolver().LookupNetIP(ctx, "ip4", "example.com")
	if err != nil {
		log.Fatal(err)
	}
	conn, err := nic.ListenPacket(ctx, "udp4", ":0")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	fmt.Println(conn.LocalAddr(), addrs)
}
