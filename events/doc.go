// Package events watches Docker: which container has which endpoint, what its
// eip.* labels say, and which networks there are.
//
// A driver is told none of that, and asking has two traps. While a container is
// being started, Docker answers nothing about it by id until the start is over;
// and while dockerd starts, its API accepts connections and stays silent. So
// the Watcher keeps a stream of events open, lists everything anew after what
// matters, and remembers labels from the moment a container is created. Events
// are hints only: what they carry is used for labels, never for what exists.
//
// A full list takes too long for one case: on a stock network the container's
// process starts 10 ms after Docker tells that the network was connected. If
// there are eip.* labels, that network alone is asked about at once, and the
// view replaced: see [Options].Urgent. As 10 ms are short, it is asked about when
// a port of its bridge comes up, too, before Docker tells: see [Watcher.PortUp].
//
// Driver options of an endpoint (docker run --network name=N,driver-opt=…) are in
// no list. A container is asked about by id once it runs, a few at a time.
//
// Labels that a container has from its image are not believed: an image must
// not choose an address. See model.Container.
//
// It sends only GET (and the HEAD of a ping): /_ping, /version, /info, /events,
// /networks, /networks/{id}, /containers/json, /containers/{id}/json and
// /images/{id}/json.
package events
