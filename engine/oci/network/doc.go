// Package network gives sandboxes their network: none (a namespace with nothing but loopback), the host's
// own, or one that reaches outwards through the host.
//
// A namespace lives as long as a descriptor of it or a process in it, so nothing of a network is left
// after a crash but what the whole host shares; Recover removes that.
//
// A namespace of mode none in which nothing is left to be seen of its sandbox may be given to another: see Net.Return.
//
// It starts no containers, writes no files into them, and publishes no ports.
package network
