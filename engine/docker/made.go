package docker

import (
	"sync"
	"time"
)

// madeFor is how long a container is remembered after it was removed.
const madeFor = 10 * time.Minute

// made remembers the containers that this process has had Podman make. Podman may say that it has removed one and keep half of
// it, which is found in a list later: so that they are known for some time after.
type made struct {
	mu sync.Mutex
	m  map[string]time.Time // by ID: when it was removed; zero for one that was not
}

// add remembers a container, and forgets those that were removed long ago.
func (m *made) add(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = map[string]time.Time{}
	}
	for id, gone := range m.m {
		if !gone.IsZero() && time.Since(gone) > madeFor {
			delete(m.m, id)
		}
	}
	m.m[id] = time.Time{}
}

// has reports whether this process has had Podman make a container that may be there still, or half of it.
func (m *made) has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.m[id]
	return ok
}

// removed notes that a container was removed.
func (m *made) removed(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if gone, ok := m.m[id]; ok && gone.IsZero() {
		m.m[id] = time.Now()
	}
}

// there is how many were not removed.
func (m *made) there() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, gone := range m.m {
		if gone.IsZero() {
			n++
		}
	}
	return n
}
