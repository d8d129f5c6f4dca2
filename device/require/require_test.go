package require

import (
	"errors"
	"testing"

	"github.com/berth-project/berth"
)

var h100 = Host{CUDA: "12.4", Driver: "550.54.15", Arch: "9.0", Brand: "Nvidia"}

func TestCheck(t *testing.T) {
	type outcome string
	const met, unmet, invalid outcome = "met", "unmet", "invalid"
	for _, c := range []struct {
		name        string
		requirement string
		host        Host
		want        outcome
	}{
		{"nothing", "", h100, met},
		{"only separators", " , ,, ", h100, met},
		{"the first alternative", "cuda>=12.4 nonsense", h100, met},
		{"the second alternative", "cuda>=13 driver>=550,driver<551", h100, met},
		{"a factor fails", "cuda>=12,driver<550", h100, unmet},
		{"read only when it is reached", "cuda>=13,foo=1", h100, unmet},
		{"reached and unknown", "cuda>=12,foo=1", h100, invalid},
		{"in any case", "CUDA>=12,Brand=NVIDIA", h100, met},
		{"numbers, not text", "cuda<12.10", h100, met},
		{"zeros behind", "cuda=12.4.0.0", h100, met},
		{"zeros in front", "driver>=0550.054", h100, met},
		{"longer is more", "cuda<12.4.0.1", h100, met},
		{"dots only", "cuda>=.", h100, invalid},
		{"a number larger than any", "cuda<18446744073709551615", h100, invalid},
		{"letters", "cuda>=12a", h100, invalid},
		{"lone sign is not-equal", "cuda!12.4", h100, unmet},
		{"two signs that are none", "cuda=<13", h100, invalid},
		{"no property", ">=12", h100, invalid},
		{"brands have no order", "brand>=tesla", h100, invalid},
		{"unknown host property", "cuda>=99 brand=tesla", Host{CUDA: "12.4"}, met},
		{"unknown host property, unread value", "arch>=nonsense", Host{}, met},
		{"commas after a failure end it", "cuda>=13 , cuda>=1", h100, unmet},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Check(c.requirement, c.host)
			got, u := met, new(Unmet)
			switch {
			case errors.As(err, &u):
				got = unmet
			case errors.Is(err, berth.ErrInvalid):
				got = invalid
			case err != nil:
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("%q: %s (%v), want %s", c.requirement, got, err, c.want)
			}
		})
	}
}

// The refusal shows both sides.
func TestUnmet(t *testing.T) {
	err := CheckAll([]string{"arch>=8.0", "cuda>=12.8 brand=tesla"}, h100)
	want := `the image requires "cuda>=12.8 brand=tesla", and this host has cuda 12.4, driver 550.54.15, arch 9.0, brand Nvidia: exhausted`
	if err == nil || err.Error() != want || !errors.Is(err, berth.ErrExhausted) {
		t.Errorf("%v", err)
	}
	if s := (Host{}).String(); s != "nothing that is known" {
		t.Error(s)
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"cuda>=12.4 brand=tesla,driver>=450 foo=1": "cuda>=12.4||brand=tesla&&driver>=450",
		"foo=1,cuda=12":       "cuda=12",
		"cuda>=11.6,arch=5.3": "cuda>=11.6&&arch=5.3",
	} {
		e, err := Parse(text, Known)
		if err != nil || e.String() != want {
			t.Errorf("%q: %v, %v; want %s", text, e, err, want)
		}
	}
	for _, text := range []string{"cuda", "cuda>=", "cuda=foo", "cuda=>12", "driver>=1.2.3.4", "cuda=12.1.1-01"} {
		if e, err := Parse(text, Known); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%q: %v, %v", text, e, err)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("cuda>=12.4 brand=tesla,driver>=450")
	f.Add("arch!=.9 , cuda<18446744073709551615")
	f.Fuzz(func(t *testing.T, text string) {
		// What the host does not know it meets, unless the property itself is unknown or the term malformed.
		if err := Check(text, Host{}); err != nil && !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
		_ = Check(text, h100)
		if e, err := Parse(text, Known); err == nil && e != nil {
			if _, err := e.Holds(Host{}); err != nil {
				t.Errorf("%q was read, and cannot be evaluated: %v", text, err)
			}
		}
	})
}
