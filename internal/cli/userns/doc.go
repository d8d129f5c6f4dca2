// Package userns makes berth root of a user namespace where it was started by somebody who is not root of
// the machine: all that berth does then needs no privilege but that of owning its own namespace.
//
// Enter replaces the process, so that whoever started berth has one process to signal, to stop, to kill and
// to wait for, and the terminal sees no other. A namespace can only be left or entered by a process with
// one thread, which a Go program never is. So the process executes a stub first, some 200 bytes of machine
// code from Go assembly:
//
//	stub                                   helper (a child, outside of the namespace)
//	unshare(CLONE_NEWUSER)
//	write the errno, one byte      --->    0: map the ids, by newuidmap and newgidmap where they are there
//	read one byte                  <---    0: done; else the exit code, after it told why
//	execve berth again, as uid 0
//
// It is not a sandbox: what may be mounted or mapped in the namespace is for the engine to say.
package userns
