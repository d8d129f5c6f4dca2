package seccomp

import "github.com/opencontainers/runtime-spec/specs-go"

// Number is the number of a system call in the table of an architecture; false where it has none.
func Number(a specs.Arch, name string) (uint32, bool) { return ociArchs[a].number(name) }

// Multiplexed reports whether an architecture reaches the call of that name through another too.
func Multiplexed(a specs.Arch, name string) bool {
	_, _, ok := ociArchs[a].multiplexed(name)
	return ok
}

// Names are all names of system calls.
func Names() []string {
	var names []string
	for _, c := range calls {
		names = append(names, c.name)
	}
	return names
}
