package program

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Codes are the programs that hold for a cgroup, read back.
func Codes(cgroup *os.File) ([]Code, error) {
	return Each(func() ([]uint32, error) { return Effective(cgroup) }, read)
}

func read(id uint32) (Code, error) {
	p, err := ByID(id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	raw, err := p.Code()
	if err != nil {
		return nil, fmt.Errorf("program %d: %w", id, err)
	}
	code, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("program %d: %w", id, err)
	}
	return code, nil
}

// Access says whether all programs allow to read and to write a device: "rw", "r", "w" or "". kind is "c" or "b".
func Access(codes []Code, kind string, major, minor uint32) (access string, err error) {
	u := Use{Type: unix.BPF_DEVCG_DEV_CHAR, Major: major, Minor: minor}
	if kind == "b" {
		u.Type = unix.BPF_DEVCG_DEV_BLOCK
	}
	for _, a := range []struct {
		bit  uint16
		name string
	}{{unix.BPF_DEVCG_ACC_READ, "r"}, {unix.BPF_DEVCG_ACC_WRITE, "w"}} {
		u.Access = a.bit
		all := true
		for _, code := range codes {
			ok, err := code.Allows(u)
			if err != nil {
				return "", err
			}
			all = all && ok
		}
		if all {
			access += a.name
		}
	}
	return access, nil
}
