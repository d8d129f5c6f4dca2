package meter

import (
	"math"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// sums are what is known of one device so far.
type sums struct {
	UUID    string  `json:"uuid"`
	Peak    *int64  `json:"peak,omitempty"`    // bytes
	Busy    float64 `json:"busy,omitempty"`    // percent times seconds
	Weight  float64 `json:"weight,omitempty"`  // seconds of which Busy is known
	Counter *joules `json:"counter,omitempty"` // of energy
	Energy  float64 `json:"energy,omitempty"`  // joules, summed up from Power where there is no counter
	Powered bool    `json:"powered,omitempty"` // Energy is known
	Lacks   string  `json:"lacks,omitempty"`

	power *float64 // the last; W
}

// joules are the first and the last reading of a counter.
type joules struct{ First, Last float64 }

// add adds a reading that came so long after the one before, or after the start. What is in use once all is over is not
// asked, unless nothing else was.
func (s *sums) add(r device.Reading, after time.Duration, over bool) {
	seconds := after.Seconds()
	if r.Memory != nil && (s.Peak == nil || *s.Peak < *r.Memory) {
		peak := *r.Memory
		s.Peak = &peak
	}
	if r.Busy != nil && (!over || s.Weight == 0) {
		weight := math.Max(seconds, 1e-3) // the first counts too
		s.Busy += *r.Busy * weight
		s.Weight += weight
	}
	switch {
	case r.Energy != nil && s.Counter == nil:
		s.Counter = &joules{*r.Energy, *r.Energy}
	case r.Energy != nil && *r.Energy >= s.Counter.Last:
		s.Counter.Last = *r.Energy
	case r.Energy != nil: // the driver was loaded anew, and counts from zero
		s.Counter.First -= s.Counter.Last
		s.Counter.Last = *r.Energy
	}
	if r.Power != nil && s.power != nil {
		s.Energy += (*r.Power + *s.power) / 2 * seconds
		s.Powered = true
	}
	s.power = r.Power
}

// use is what is told of the sums.
func (s *sums) use() berth.GPUUse {
	u := berth.GPUUse{UUID: s.UUID, PeakMemory: s.Peak, Unknown: s.Lacks}
	if s.Weight > 0 {
		busy := round(s.Busy / s.Weight)
		u.Busy = &busy
	}
	switch {
	case s.Counter != nil:
		energy := round(s.Counter.Last - s.Counter.First)
		u.Energy = &energy
	case s.Powered:
		energy := round(s.Energy)
		u.Energy = &energy
	}
	return u
}

// round leaves a tenth of a percent, or of a joule.
func round(x float64) float64 { return math.Round(10*x) / 10 }
