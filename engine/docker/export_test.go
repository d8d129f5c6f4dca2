package docker

// Made is how many containers of Podman's an engine takes for its own, and for there.
func Made(e *Engine) int { return e.made.there() }

// Hears reports whether an engine hears what its daemon tells.
func Hears(e *Engine) bool {
	e.hearing.mu.Lock()
	defer e.hearing.mu.Unlock()
	return e.hearing.live
}
