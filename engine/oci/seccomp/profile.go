package seccomp

import (
	"bytes"
	"encoding/json"
	"fmt"

	docker "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
)

// profileMax bounds the size of a profile, in bytes; Docker's own has 20 KiB.
const profileMax = 1 << 20

// Default returns Docker's default profile for a container with these bounding capabilities ("CAP_CHOWN", …)
// on this machine and kernel.
func Default(bounding []string) (*specs.LinuxSeccomp, error) {
	p, err := docker.GetDefaultProfile(specFor(bounding))
	if err != nil {
		return nil, fmt.Errorf("seccomp default profile: %w: %w", berth.ErrUnsupported, err)
	}
	return p, nil
}

// Load reads a profile as `docker run --security-opt seccomp=FILE` takes it, with what it includes and excludes
// by capability, architecture and kernel resolved for this machine; the form of the OCI runtime spec is a
// subset of that. ErrInvalid where it cannot be read. Whether its actions and arguments make sense is Compile's
// to say.
func Load(profile []byte, bounding []string) (*specs.LinuxSeccomp, error) {
	if len(profile) > profileMax {
		return nil, fmt.Errorf("seccomp profile: %w: it has %d bytes, and may have %d", berth.ErrInvalid, len(profile), profileMax)
	}
	var parsed docker.Seccomp
	if err := json.Unmarshal(profile, &parsed); err != nil {
		return nil, fmt.Errorf("seccomp profile: %w: %s: %w", berth.ErrInvalid, position(profile, err), err)
	}
	if parsed.DefaultAction == "" {
		return nil, fmt.Errorf("seccomp profile: %w: it has no defaultAction; to run without seccomp, say unconfined", berth.ErrInvalid)
	}
	for i, s := range parsed.Syscalls {
		if s == nil {
			return nil, fmt.Errorf("seccomp profile: %w: syscalls[%d] is null", berth.ErrInvalid, i)
		}
	}
	p, err := docker.LoadProfile(string(profile), specFor(bounding))
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w: %w", berth.ErrInvalid, err)
	}
	return p, nil
}

// specFor is the part of a container's spec that the conditions of a profile look at.
func specFor(bounding []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: bounding}}}
}

// position says where in a document a JSON error is.
func position(doc []byte, err error) string {
	offset := int64(0)
	switch e := err.(type) { //nolint:errorlint // encoding/json returns these two bare
	case *json.SyntaxError:
		offset = e.Offset
	case *json.UnmarshalTypeError:
		offset = e.Offset
	}
	before := doc[:min(int(offset), len(doc))]
	line := bytes.Count(before, []byte("\n")) + 1
	return fmt.Sprintf("line %d, column %d", line, len(before)-bytes.LastIndexByte(before, '\n')-1)
}
