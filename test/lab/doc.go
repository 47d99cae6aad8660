// Package lab builds a small cloud out of anonymous network namespaces on one Linux machine, so that
// eipnet can be tested against what a cloud really does: it drops every packet whose source address is
// not the one of the NIC that sent it.
//
//	site ──────── fabric ──┬── eth0 ┐
//	(the Internet) (the     ├── eth1 ├ host (optionally with a real Docker Engine)
//	               cloud)   └── eth2 ┘
//
// Nothing of a lab has a name in the machine's own namespaces: no netns names, no links, no mounts. All
// is held by file descriptors and by one holder process that dies with the process that made the lab.
//
// A binary that uses the package calls Init first thing in main or TestMain.
package lab
