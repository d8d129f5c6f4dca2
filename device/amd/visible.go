package amd

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Visible is what a value of AMD_VISIBLE_DEVICES means on a host.
type Visible struct {
	Indices       []int    // sorted; one that is named twice is there twice
	IgnoredIDs    []string // that no GPU has
	IgnoredRanges []string // that are none
}

// maxListed bounds how many indices beyond a host's GPUs are listed of one range.
const maxListed = 1024

// ParseVisible reads a value of AMD_VISIBLE_DEVICES for a host with so many GPUs, whose unique ids have the given
// indices: "all", or a list of indices, ranges of them, and unique ids. As in ROCm's toolkit, what names no GPU is
// ignored, so that "void" and "none" are no GPUs; who asks for GPUs must look at what was ignored.
func ParseVisible(value string, gpus int, ids map[string][]int) Visible {
	var v Visible
	if value == "all" || value == "All" || value == "ALL" {
		for i := range gpus {
			v.Indices = append(v.Indices, i)
		}
		return v
	}
	for part := range strings.SplitSeq(value, ",") {
		switch {
		case isUniqueID(part):
			if found := lookUp(part, ids); found != nil {
				v.Indices = append(v.Indices, found...)
			} else {
				v.IgnoredIDs = append(v.IgnoredIDs, part)
			}
		case strings.Contains(part, "-"):
			v.addRange(part, gpus)
		default:
			if i, err := strconv.Atoi(part); err == nil && i >= 0 && i < gpus {
				v.Indices = append(v.Indices, i)
			} else {
				v.IgnoredIDs = append(v.IgnoredIDs, part)
			}
		}
	}
	slices.Sort(v.Indices)
	return v
}

// isUniqueID tells unique ids from indices: they begin with 0x, or are longer than any index.
func isUniqueID(s string) bool {
	if strings.HasPrefix(s, "0x") || strings.HasPrefix(s, "0X") {
		return true
	}
	return len(s) > 8 && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// lookUp finds the GPUs with a unique id: one, or all its partitions.
func lookUp(id string, ids map[string][]int) []int {
	id = strings.TrimPrefix(strings.ToLower(id), "0x")
	if found, ok := ids["0x"+id]; ok {
		return found
	}
	return ids[id]
}

func (v *Visible) addRange(part string, gpus int) {
	a, b, _ := strings.Cut(part, "-")
	from, errA := strconv.Atoi(a)
	to, errB := strconv.Atoi(b)
	if errA != nil || errB != nil || from < 0 || to < from {
		v.IgnoredRanges = append(v.IgnoredRanges, part)
		return
	}
	for i := from; i <= to; i++ {
		switch {
		case i < gpus:
			v.Indices = append(v.Indices, i)
		case i-from > maxListed:
			v.IgnoredIDs = append(v.IgnoredIDs, fmt.Sprintf("%d-%d", i, to))
			return
		default:
			v.IgnoredIDs = append(v.IgnoredIDs, strconv.Itoa(i))
		}
	}
}

// VisibleOf finds the value that counts in an environment: of AMD_VISIBLE_DEVICES and all variables that begin
// with DOCKER_RESOURCE_, which swarm sets, the last. Earlier ones mean nothing.
func VisibleOf(env []string) (value string, ok bool) {
	for _, v := range slices.Backward(env) {
		name, val, is := strings.Cut(v, "=")
		if is && (name == "AMD_VISIBLE_DEVICES" || strings.HasPrefix(name, "DOCKER_RESOURCE_")) {
			return val, true
		}
	}
	return "", false
}
