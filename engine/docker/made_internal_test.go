package docker

import (
	"testing"
	"testing/synctest"
	"time"
)

// A container is known for a while after it was removed, as Podman may keep half of it; then it is forgotten.
func TestMadeIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m made
		m.add("a")
		m.add("b")
		m.removed("a")
		m.removed("nobody's")
		if !m.has("a") || !m.has("b") || m.has("nobody's") || m.there() != 1 {
			t.Errorf("after a removal: %v", m.m)
		}
		time.Sleep(madeFor + time.Second)
		m.removed("a") // once more does not count
		m.add("c")
		if m.has("a") || !m.has("b") || !m.has("c") {
			t.Errorf("long after: %v", m.m)
		}
	})
}
