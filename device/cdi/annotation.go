package cdi

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/berth-project/berth"
)

// AnnotationPrefix begins the annotations of a container that ask for CDI devices.
const AnnotationPrefix = "cdi.k8s.io/"

// AnnotationKey is the annotation by which plugin ("vendor.class") asks for the device with the given id.
// ErrInvalid if the two make no key.
func AnnotationKey(plugin, id string) (string, error) {
	name := plugin + "_" + strings.ReplaceAll(id, "/", "_")
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%w CDI annotation %q: %s", berth.ErrInvalid, name, why)
	}
	switch {
	case plugin == "":
		return bad("the plugin has no name")
	case id == "":
		return bad("the device has no id")
	case len(name) > 63:
		return bad("longer than 63 characters")
	case !isAlphanumeric(name[0]) || !isAlphanumeric(name[len(name)-1]):
		return bad("must begin and end with a letter or digit")
	}
	for i := range len(name) {
		if c := name[i]; !isAlphanumeric(c) && c != '_' && c != '-' && c != '.' {
			return bad(fmt.Sprintf("%q is not allowed", c))
		}
	}
	return AnnotationPrefix + name, nil
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// ParseAnnotations finds the devices that annotations ask for, in the order of the sorted keys. One name that
// is not qualified makes all of it ErrInvalid.
func ParseAnnotations(annotations map[string]string) ([]string, error) {
	var devices []string
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(key, AnnotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(annotations[key], ",") {
			if _, err := ParseName(name); err != nil {
				return nil, fmt.Errorf("annotation %s: %w", key, err)
			}
			devices = append(devices, name)
		}
	}
	return devices, nil
}
