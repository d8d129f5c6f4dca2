// Package network gives sandboxes their network: none (a namespace with nothing but loopback), the host's
// own, or one that reaches outwards through the host.
//
// A namespace lives as long as a descriptor of it or a process in it, so nothing of a network is left
// after a crash but what the whole host shares; Recover removes that.
//
// It starts no containers, writes no files into them, and publishes no ports.
package network
