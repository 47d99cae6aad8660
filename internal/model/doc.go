// Package model holds the words that every other room of eipnet speaks: NICs,
// selectors, pins, networks, endpoints, published ports, marks and problems.
//
// It is a leaf: values over net/netip and the standard library, no I/O, no
// kernel, no Docker. Anything in it can be compared, printed and stored.
package model
