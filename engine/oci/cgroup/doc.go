// Package cgroup makes, limits, reads, kills and removes the cgroups of containers, on cgroup v1, hybrid
// and v2, as root and where a subtree was delegated to another user.
//
// A Host knows where this process may make cgroups and which controllers it has there. A Group is the
// cgroup of one container: one directory on v2, one a controller on v1, and both on a hybrid host, where
// v1 has the controllers and v2 the means to kill, freeze and count. A Pool keeps clean groups for reuse.
//
// It decides nothing about containers: it does not start them, and what a rising kill counter means for an
// exit is the engine's business.
package cgroup
