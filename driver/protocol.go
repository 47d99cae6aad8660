package driver

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// The requests and answers of libnetwork's remote driver protocol, as far as
// they are used. They are our own: docker/go-plugins-helpers/network has no
// go.mod, needs the pre-module go-systemd, and lacks GwAllocChecker; and options
// stay raw here, as each of them has a shape of its own.

type rawOptions map[string]json.RawMessage

type networkRequest struct{ NetworkID string }

type createNetworkRequest struct {
	NetworkID          string
	Options            rawOptions
	IPv4Data, IPv6Data []ipamData
}

type ipamData struct {
	Pool, Gateway string
	AuxAddresses  map[string]json.RawMessage // --aux-address; only the keys are looked at
}

type endpointRequest struct{ NetworkID, EndpointID string }

type createEndpointRequest struct {
	NetworkID, EndpointID string
	Interface             *endpointInterface
	Options               rawOptions
}

type endpointInterface struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

// sandboxRequest is a Join or ProgramExternalConnectivity: its options are not the
// endpoint's, but the container's, and the same on all its networks.
type sandboxRequest struct {
	NetworkID, EndpointID string
	Options               rawOptions
}

type portBinding struct {
	Proto       uint8
	Port        uint16
	HostIP      string
	HostPort    uint16
	HostPortEnd uint16
}

type activateResponse struct{ Implements []string }

type capabilitiesResponse struct {
	Scope             string
	ConnectivityScope string
	GwAllocChecker    bool
}

type gwAllocCheckResponse struct{ SkipIPv4, SkipIPv6 bool }

type createEndpointResponse struct {
	Interface *endpointInterface `json:",omitempty"`
}

type joinResponse struct {
	InterfaceName struct{ SrcName, DstPrefix string }
	Gateway       string `json:",omitempty"`
	GatewayIPv6   string `json:",omitempty"`
}

type operInfoResponse struct{ Value struct{} }

type errorResponse struct{ Err string }

func (r networkRequest) validate() error       { return validID("NetworkID", r.NetworkID) }
func (r createNetworkRequest) validate() error { return validID("NetworkID", r.NetworkID) }
func (r endpointRequest) validate() error      { return validEndpoint(r.NetworkID, r.EndpointID) }
func (r createEndpointRequest) validate() error {
	return validEndpoint(r.NetworkID, r.EndpointID)
}
func (r sandboxRequest) validate() error { return validEndpoint(r.NetworkID, r.EndpointID) }

func validEndpoint(network, endpoint string) error {
	return errors.Join(validID("NetworkID", network), validID("EndpointID", endpoint))
}

const idChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// validID accepts what may become part of an interface's name. Docker's own ids
// are 64 hex digits, swarm's 25 of base 36.
func validID(field, id string) error {
	switch {
	case id == "":
		return fmt.Errorf("%s is missing", field)
	case len(id) > 128 || strings.ContainsFunc(id, func(r rune) bool { return !strings.ContainsRune(idChars, r) }):
		return fmt.Errorf("%s %.140q is no id", field, id)
	}
	return nil
}
