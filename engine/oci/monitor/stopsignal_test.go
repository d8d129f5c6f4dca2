package monitor

import (
	"syscall"
	"testing"

	"github.com/berth-project/berth"
)

// What an image names is what its command gets, as its makers have written it for Docker.
func TestStopSignal(t *testing.T) {
	for _, tt := range []struct {
		step, image string
		want        syscall.Signal
	}{
		{"", "", 15},
		{"", "SIGRTMIN+3", 37},
		{"", "rtmin+3", 37},
		{"", "37", 37},
		{"INT", "SIGRTMIN+3", 2},
		{"", "SIGNONE", 15},
	} {
		c := &container{step: berth.StepSpec{StopSignal: tt.step, Image: berth.Image{Config: berth.ImageConfig{StopSignal: tt.image}}}}
		if got := c.stopSignal(); got != tt.want {
			t.Errorf("step %q, image %q: %d, want %d", tt.step, tt.image, got, tt.want)
		}
	}
}
