// Package state keeps what has to survive a restart of eipnet: its networks and
// endpoints, which NIC has which mark, and the values of switches it changed.
// Docker replays none of it to a driver.
//
// It is a bbolt file with a copy in memory. Reads never touch the disk and
// never wait for it. Writers queue; a write that would change nothing is none.
// Every value has its own version and checksum, and all of them together have a
// digest, so that damage costs the records it hit, is noticed, and is told:
// bbolt itself checks neither values nor how many of them there are.
package state
