package cli

import (
	"slices"
	"testing"
)

// TestShareOut: sizes that do not fit beside each other are taken down to what there is, and no further.
func TestShareOut(t *testing.T) {
	for _, row := range []struct {
		name       string
		free       int64
		asks, gets []int64
	}{
		{"none", 100, nil, nil},
		{"one", 100, []int64{100}, []int64{100}},
		{"one that is larger", 100, []int64{900}, []int64{100}},
		{"all fit", 100, []int64{50, 20, 30}, []int64{50, 20, 30}},
		{"two that are larger", 100, []int64{100, 100}, []int64{50, 50}},
		{"a small one stays whole", 100, []int64{100, 10, 60}, []int64{45, 10, 45}},
	} {
		sizes := slices.Clone(row.asks)
		var all []*int64
		for i := range sizes {
			all = append(all, &sizes[i])
		}
		shareOut(row.free, all)
		if !slices.Equal(sizes, row.gets) {
			t.Errorf("%s: %d, want %d", row.name, sizes, row.gets)
		}
	}
}
