package nvml

import (
	"strings"
	"testing"

	"github.com/berth-project/berth/device"
)

// Where the library cannot be asked, nothing is measured, and the reason is told: in every build.
func TestGaugesThatCannotAsk(t *testing.T) {
	elsewhere, err := device.OpenHost(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	here, err := device.OpenHost("/")
	if err != nil {
		t.Fatal(err)
	}
	for h, says := range map[*device.Host]string{elsewhere: "another root", here: map[bool]string{true: "", false: "without cgo"}[Built]} {
		if says == "" {
			continue // the library may be there
		}
		g := OpenGauges(h).Gauge(device.Gauged{Unit: device.Unit{Device: device.Device{UUID: "GPU-1"}}})
		if g.Read() != (device.Reading{}) || !strings.Contains(g.Lacks(), says) {
			t.Errorf("%+v, %q", g.Read(), g.Lacks())
		}
	}
}
