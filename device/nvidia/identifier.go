package nvidia

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
)

// IdentifierKind is what a name of a device means, without looking at any device.
type IdentifierKind string

// The kinds of names.
const (
	GPUIndex          IdentifierKind = "gpu_index" // 0
	GPUUUID           IdentifierKind = "gpu_uuid"  // GPU-b1028956-cfa2-0990-bf4a-5da9abb51763
	MIGIndex          IdentifierKind = "mig_index" // 0:1
	MIGUUID           IdentifierKind = "mig_uuid"  // MIG-…, or MIG-GPU-UUID/GI/CI of old drivers
	InvalidIdentifier IdentifierKind = "invalid"
)

// With dashes, also as a URN or in braces, or what is in their place, which upstream does not look at; or without.
var uuidForm = regexp.MustCompile(`^(?is:(?:urn:uuid:)?` + dashed + `|.` + dashed + `.|[0-9a-f]{32})$`)

const dashed = `[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}`

// KindOf returns the kind of a name. PCI addresses and parts of UUIDs are no names.
func KindOf(id string) IdentifierKind {
	if isIndex(id) {
		return GPUIndex
	}
	if gpu, mig, ok := strings.Cut(id, ":"); ok && isIndex(gpu) && isIndex(mig) {
		return MIGIndex
	}
	if isUUID(id, "GPU-") {
		return GPUUUID
	}
	if isUUID(id, "MIG-") {
		return MIGUUID
	}
	if rest, ok := strings.CutPrefix(id, "MIG-"); ok {
		p := strings.Split(rest, "/")
		if len(p) == 3 && isUUID(p[0], "GPU-") && isIndex(p[1]) && isIndex(p[2]) {
			return MIGUUID
		}
	}
	return InvalidIdentifier
}

func isIndex(s string) bool {
	_, err := strconv.ParseUint(s, 10, 0)
	return err == nil
}

func isUUID(s, prefix string) bool {
	rest, ok := strings.CutPrefix(s, prefix)
	return ok && uuidForm.MatchString(rest)
}

// Names are the strategies of naming devices in CDI specs.
type Names string

// The strategies.
const (
	ByIndex     Names = "index"      // 0, 0:1
	ByTypeIndex Names = "type-index" // gpu0, mig0:1
	ByUUID      Names = "uuid"
)

// GPU returns the name of a GPU.
func (n Names) GPU(index int, uuid string) (string, error) {
	switch n {
	case ByIndex:
		return strconv.Itoa(index), nil
	case ByTypeIndex:
		return fmt.Sprintf("gpu%d", index), nil
	case ByUUID:
		return uuid, nil
	}
	return "", n.unknown()
}

// MIG returns the name of a slice of a GPU.
func (n Names) MIG(gpu, index int, uuid string) (string, error) {
	switch n {
	case ByIndex:
		return fmt.Sprintf("%d:%d", gpu, index), nil
	case ByTypeIndex:
		return fmt.Sprintf("mig%d:%d", gpu, index), nil
	case ByUUID:
		return uuid, nil
	}
	return "", n.unknown()
}

func (n Names) unknown() error {
	return fmt.Errorf("%w: naming devices by %q: there are index, type-index and uuid", berth.ErrInvalid, string(n))
}
