package berth_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

func TestParseSize(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int64
	}{
		{"0", 0},
		{"17", 17},
		{"17B", 17},
		{"4G", 4e9},
		{"4GB", 4e9},
		{"4g", 4e9},
		{"4GiB", 4 << 30},
		{"4Gi", 4 << 30},
		{"512MiB", 512 << 20},
		{"512 MiB", 512 << 20},
		{"1.5GiB", 3 << 29},
		{"0.5K", 500},
		{"1k", 1000},
		{"2T", 2e12},
		{"0.3", 1},      // a part of a byte is a byte
		{"0.1KiB", 103}, // 102.4
		{"9.223372036854775807E", math.MaxInt64},
		{"9223372036854775807", math.MaxInt64},
	} {
		if got, err := berth.ParseSize(c.in); err != nil || got != c.want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", c.in, got, err, c.want)
		}
	}
}

func TestParseSizeRefuses(t *testing.T) {
	for _, c := range []struct{ in, says string }{
		{"", "empty"},
		{"-1G", "negative"},
		{"G", `'G'`},
		{"1.2.3G", `"1.2.3" is not a number`},
		{".5G", `".5" is not a number`},
		{"5.G", `"5." is not a number`},
		{"12XB", `unknown unit "XB" at character 3`},
		{"1e3", `unknown unit "e3" at character 2`},
		{"1  GiB", "unknown unit"},
		{"4GiBs", "unknown unit"},
		{"9.3E", "more than"},
		{"99999999999999999999", "more than"},
		{strings.Repeat("9", 65), "longer"},
		{"½G", "'½'"},
	} {
		_, err := berth.ParseSize(c.in)
		if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("ParseSize(%q): %v; want an ErrInvalid that says %q", c.in, err, c.says)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0", 1: "1", 1000: "1KB", 1024: "1KiB", 4e9: "4GB", 4 << 30: "4GiB", 512 << 20: "512MiB", 3 << 29: "1536MiB",
		1234567: "1234567", math.MaxInt64: "9223372036854775807", -2048: "-2KiB",
	} {
		if got := berth.FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "1.5h": 90 * time.Minute, "2d": 48 * time.Hour,
		"2d12h": 60 * time.Hour, "0": 0, "0s": 0, "250ms": 250 * time.Millisecond, "0.5d": 12 * time.Hour,
	} {
		if got, err := berth.ParseDuration(in); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, c := range []struct{ in, says string }{
		{"", "empty"},
		{"90", `no unit after "90"`},
		{"-1s", "negative"},
		{"1h30", `no unit after "1h30"`},
		{"ten", "number and a unit"},
		{"1x", "number and a unit"},
		{"d", `"" is not a number of days`},
		{"NaNd", "days"},
		{"2d-1h", "number and a unit"},
		{"200000d", "292 years"},
		{"106751d24h", "292 years"},
		{"99999999999999h", "292 years"},
		{"1d99999999999999999999s", "292 years"},
		{"1h1.5.5s", "number and a unit"},
	} {
		_, err := berth.ParseDuration(c.in)
		if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("ParseDuration(%q): %v; want an ErrInvalid that says %q", c.in, err, c.says)
		}
	}
}

func TestFormatDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 90 * time.Second: "1m30s", 90 * time.Minute: "1h30m", time.Hour: "1h", time.Minute: "1m",
		10 * time.Second: "10s", 20*time.Minute + 10*time.Second: "20m10s", time.Hour + 10*time.Second: "1h0m10s",
	} {
		if got := berth.FormatDuration(d); got != want {
			t.Errorf("FormatDuration(%d) = %q, want %q", d, got, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"512MiB", "4G", "1.5GiB", "0", "-1", "9.3E", "1e3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := berth.ParseSize(s)
		if err != nil {
			if !errors.Is(err, berth.ErrInvalid) {
				t.Fatalf("ParseSize(%q): %v is not ErrInvalid", s, err)
			}
			return
		}
		if again, err := berth.ParseSize(berth.FormatSize(n)); n < 0 || err != nil || again != n {
			t.Fatalf("ParseSize(%q) = %d, written as %q and read as %d, %v", s, n, berth.FormatSize(n), again, err)
		}
	})
}
