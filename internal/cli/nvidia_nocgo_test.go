//go:build gpu && !cgo

package cli

import "testing"

// Who gives the tag wants to see what is true on a real GPU, and a build without cgo would see nothing of it: its tests ask NVIDIA's
// library, and are given a C compiler's program.
func TestOnNVIDIA(t *testing.T) {
	t.Fatal("the tests of the tag gpu need cgo, as NVIDIA's library is asked: install a C compiler (apt install gcc) and leave out CGO_ENABLED=0")
}
