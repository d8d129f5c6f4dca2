package device_test

import (
	"testing"

	"github.com/berth-project/berth/device"
)

// What looks like the key "driver" within another's value is none.
func TestNerdctlDriver(t *testing.T) {
	for value, ok := range map[string]bool{
		"driver=nvidia":           true,
		"options=driver=amd":      true,
		"device=driver=x":         true,
		"driver=":                 false,
		"driver=amd":              false,
		`"device=0,1",driver=amd`: false,
	} {
		if r, err := device.ParseNerdctlGPUs(value); (err == nil) != ok {
			t.Errorf("%q: %+v, %v", value, r, err)
		}
	}
}
