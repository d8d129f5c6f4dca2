package device

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
)

func TestParseRequest(t *testing.T) {
	for value, want := range map[string]Request{
		"2":                            {Count: 2},
		"0":                            {},
		"all":                          {Count: All},
		"-1":                           {Count: All},
		"device=all":                   {Count: All},
		"device=0":                     {IDs: []string{"0"}},
		`"device=0,1,0"`:               {IDs: []string{"0", "1"}},
		"GPU-3a23c669,GPU-4b":          {IDs: []string{"GPU-3a23c669", "GPU-4b"}},
		"0:1":                          {IDs: []string{"0:1"}},
		"0000:06:00.0":                 {IDs: []string{"0000:06:00.0"}},
		"nvidia.com/gpu=0":             {IDs: []string{"nvidia.com/gpu=0"}},
		"amd.com/gpu=0,amd.com/gpu=1":  {IDs: []string{"amd.com/gpu=0", "amd.com/gpu=1"}},
		"vendor=amd,count=1":           {Count: 1, Vendor: "amd"},
		"driver=nvidia":                {Count: 1, Vendor: "nvidia"},
		"model=H200,memory=40GiB":      {Count: 1, Model: "H200", Memory: 40 << 30},
		"mig=1G.18GB,2":                {Count: 2, MIG: "1g.18gb"},
		"shared,memory=8GiB":           {Count: 1, Shared: true, Memory: 8 << 30},
		`1,"capabilities=gpu,utility"`: {Count: 1, Capabilities: []string{"gpu", "utility"}},
		`"options=a=b,c=d"`:            {Count: 1, Options: map[string]string{"a": "b", "c": "d"}},
	} {
		got, err := ParseRequest(value)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v%s", value, err, diff)
		}
		again, err := ParseRequest(got.String())
		if diff := cmp.Diff(got, again); diff != "" || err != nil {
			t.Errorf("%s, written as %s: %v%s", value, got, err, diff)
		}
	}
}

func TestParseRequestErrors(t *testing.T) {
	for value, says := range map[string]string{
		"":                             "empty",
		"device=0,1":                   `'"device=0,1"'`,
		"capabilities=compute,utility": `'"capabilities=compute,utility"'`,
		"count=2,1":                    "two counts",
		"1,2":                          "two counts",
		"count=2,device=0":             "give one of them",
		"-2":                           "negative",
		"1.5":                          "neither a count nor an id",
		"99999999":                     "more than any machine",
		"device=":                      "no value",
		"device=foo":                   "CDI name",
		`"device=all,0"`:               "all devices, and some",
		"bogus=1":                      "there are count, device",
		"driver=foo":                   "no driver",
		"vendor=nvidia,driver=amd":     "two vendors",
		"driver=cdi,device=0":          "nvidia.com/gpu=0",
		"driver=cdi":                   "no counts",
		"driver=cdi,device=nvidia.com/gpu=0,options=a=1": "options, of which it has none",
		"capabilities=fly":            `no capability "fly"`,
		"memory=much":                 "memory",
		"mig=big":                     "1g.18gb",
		"mig=1g.5gb,vendor=amd":       "NVIDIA's",
		"shared":                      "memory=8GiB",
		"shared,memory=1GiB,2":        "share is of one GPU",
		"device=0,model=A100":         "give one of them",
		`"all`:                        "parse error",
		"vendor=nvidia,vendor=nvidia": "twice",
	} {
		r, err := ParseRequest(value)
		if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %+v, %v; want %q", value, r, err, says)
		}
	}
}

func TestParseRequests(t *testing.T) {
	for doc, want := range map[string][]Request{
		``:                                   nil,
		`null`:                               nil,
		`2`:                                  {{Count: 2}},
		`"all"`:                              {{Count: All}},
		`["0:1",{"vendor":"amd","count":2}]`: {{IDs: []string{"0:1"}}, {Count: 2, Vendor: "amd"}},
		`{"device":["0","1"],"capabilities":["utility"],"options":{"a":"b,c"}}`: {
			{IDs: []string{"0", "1"}, Capabilities: []string{"utility"}, Options: map[string]string{"a": "b,c"}},
		},
		`{"shared":true,"memory":1073741824}`: {{Count: 1, Shared: true, Memory: 1 << 30}},
	} {
		got, err := ParseRequests(json.RawMessage(doc))
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v%s", doc, err, diff)
		}
	}
	for _, doc := range []string{`true`, `{"bogus":1}`, `[[1]]`, `{"count":{}}`, `"x`, `{"device":null}`} {
		if got, err := ParseRequests(json.RawMessage(doc)); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%s: %+v, %v", doc, got, err)
		}
	}
}

// mixed is a host with GPUs of two vendors, one of them divided.
func mixed() []Device {
	const gib = 1 << 30
	return []Device{
		{Vendor: "nvidia", Index: 0, UUID: "GPU-aa", PCI: "0000:06:00.0", Model: "NVIDIA H200", Memory: 141 * gib},
		{Vendor: "nvidia", Index: 1, UUID: "GPU-bb", PCI: "0000:07:00.0", Model: "NVIDIA A100-SXM4-40GB", Memory: 40 * gib, Slices: []Slice{
			{Index: 0, UUID: "MIG-11", Profile: "1g.5gb", Memory: 5 * gib},
			{Index: 1, UUID: "MIG-GPU-bb/7/0", Profile: "3g.20gb", Memory: 20 * gib},
		}},
		{Vendor: "amd", Index: 0, UUID: "GPU-00ef/0", PCI: "0000:26:00.0", Model: "AMD Instinct MI300X", Memory: 96 * gib},
		{Vendor: "amd", Index: 1, UUID: "GPU-00ef/1", PCI: "0000:26:00.0", Model: "AMD Instinct MI300X", Memory: 96 * gib},
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		request string
		want    []string
		kind    error
		says    string
	}{
		{request: "0"},
		{request: "1", want: []string{"GPU-aa", "GPU-00ef/0", "GPU-00ef/1"}},
		{request: "2", want: []string{"GPU-aa", "GPU-00ef/0", "GPU-00ef/1"}},
		{request: "3", kind: berth.ErrExhausted, says: "2 fit"},
		{request: "vendor=nvidia,all", want: []string{"GPU-aa"}},
		{request: "vendor=intel", kind: berth.ErrExhausted, says: "this host has nvidia 0 (NVIDIA H200, GPU-aa, 141 GiB)"},
		{request: "model=nvidia-h200", want: []string{"GPU-aa"}},
		{request: "memory=10GiB,vendor=nvidia", want: []string{"GPU-aa", "MIG-GPU-bb/7/0"}},
		{request: "memory=200GiB", kind: berth.ErrExhausted, says: "nothing here fits"},
		{request: "mig=1g.5gb", want: []string{"MIG-11"}},
		{request: "shared,memory=8GiB,vendor=nvidia", want: []string{"GPU-aa"}},
		{request: "gpu-AA", kind: berth.ErrInvalid},
		{request: "GPU-AA", want: []string{"GPU-aa"}},
		{request: "device=1,vendor=nvidia", kind: berth.ErrInvalid, says: "device=1:0"},
		{request: "GPU-bb", kind: berth.ErrInvalid, says: "divided"},
		{request: "device=1,vendor=amd", want: []string{"GPU-00ef/1"}},
		{request: "device=0", kind: berth.ErrInvalid, says: "several vendors"},
		{request: "device=7", kind: berth.ErrNotFound, says: "no device 7"},
		{request: "1:1", want: []string{"MIG-GPU-bb/7/0"}},
		{request: "nvidia.com/gpu=1:0", want: []string{"MIG-11"}},
		{request: "nvidia.com/gpu=MIG-GPU-bb-7-0", want: []string{"MIG-GPU-bb/7/0"}},
		{request: "nvidia.com/gpu=0", want: []string{"GPU-aa"}},
		{request: "amd.com/gpu=all", want: []string{"GPU-00ef/0", "GPU-00ef/1"}},
		{request: "vendor.com/net=eth0", kind: berth.ErrInvalid, says: "no kind of GPUs"},
		{request: "06:00.0", want: []string{"GPU-aa"}},
		{request: "00000000:06:00.0", want: []string{"GPU-aa"}},
		{request: "0xEF", want: []string{"GPU-00ef/0", "GPU-00ef/1"}},
		{request: "GPU-aa,device=0,vendor=nvidia", want: []string{"GPU-aa"}},
		{request: "nvidia.com/gpu=0,vendor=amd", kind: berth.ErrInvalid, says: "no device of amd"},
		{request: "GPU-aa,vendor=amd", kind: berth.ErrNotFound, says: "no device GPU-aa"},
		{request: "GPU-cc", kind: berth.ErrNotFound, says: "this host has"},
	} {
		r, err := ParseRequest(c.request)
		var units []Unit
		if err == nil {
			units, err = r.Match(mixed())
		}
		if !errors.Is(err, c.kind) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.request, err)
			continue
		}
		var got []string
		for _, u := range units {
			got = append(got, u.UUID())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.request, got, c.want)
		}
	}
}

// What is not known of a device does not fit, which is said.
func TestMatchUnknown(t *testing.T) {
	known := Device{Vendor: "amd", UUID: "GPU-1", Memory: 16 << 30}
	for _, c := range []struct {
		request string
		devices []Device
		says    string
	}{
		{"memory=1GiB", []Device{{Vendor: "nvidia", UUID: "GPU-2"}}, "nothing here fits, but the memory of 1 is not known: such are lent to who names them, as in device=0;"},
		{"2,memory=1GiB", []Device{known, {Vendor: "nvidia", UUID: "GPU-2"}}, "1 fit, but the memory of 1 is not known"},
		{"memory=32GiB", []Device{known}, "nothing here fits; "},
		{"vendor=amd,memory=32GiB", []Device{known, {Vendor: "nvidia", UUID: "GPU-2"}}, "nothing here fits; "},
		{"mig=1g.5gb", []Device{{Vendor: "nvidia", UUID: "GPU-2", Slices: []Slice{{UUID: "MIG-1"}, {UUID: "MIG-2"}}}}, "nothing here fits, but the profile of 2 is not known: such are lent to who names them, as in device=0:0;"},
		{"mig=1g.5gb", []Device{{Vendor: "nvidia", UUID: "GPU-2"}}, "nothing here fits; "},
	} {
		r, err := ParseRequest(c.request)
		if err == nil {
			_, err = r.Match(c.devices)
		}
		if !errors.Is(err, berth.ErrExhausted) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.request, err, c.says)
		}
	}
}

// A GPU in MIG mode that has no slices is lent to nobody, and who names it, or finds no other, is told what to do.
func TestMatchMIGModeWithoutSlices(t *testing.T) {
	undivided := Device{Vendor: "nvidia", UUID: "GPU-1", Model: "A100", MIG: true}
	whole := Device{Vendor: "nvidia", Index: 1, UUID: "GPU-2", Model: "A100"}
	const remedy = "nvidia 0 (A100, GPU-1) is in MIG mode and has no slices; make some, as root: nvidia-smi mig -i 0 -cgi PROFILE -C"
	for _, c := range []struct {
		request string
		devices []Device
		want    string
		kind    error
	}{
		{"1", []Device{undivided, whole}, "GPU-2", nil},
		{"all", []Device{undivided, whole}, "GPU-2", nil},
		{"device=0", []Device{undivided, whole}, remedy, berth.ErrInvalid},
		{"GPU-1", []Device{undivided, whole}, remedy, berth.ErrInvalid},
		{"1", []Device{undivided}, "nothing here fits, and " + remedy, berth.ErrExhausted},
		{"vendor=amd", []Device{undivided}, "nothing here fits; ", berth.ErrExhausted},
	} {
		r, err := ParseRequest(c.request)
		if err != nil {
			t.Fatal(err)
		}
		units, err := r.Match(c.devices)
		if !errors.Is(err, c.kind) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.request, err, c.want)
		} else if err == nil && (len(units) != 1 || units[0].UUID() != c.want) {
			t.Errorf("%s: %v", c.request, units)
		}
	}
}

// An unknown model is told with those that there are, also where each device is divided or there are too many to list.
func TestMatchNoModel(t *testing.T) {
	divided := Device{Vendor: "nvidia", UUID: "GPU-1", Model: "NVIDIA A100-SXM4-40GB", Slices: []Slice{{UUID: "MIG-1", Profile: "1g.5gb"}}}
	other := Device{Vendor: "amd", UUID: "GPU-2", Model: "AMD Instinct MI300X"}
	for request, says := range map[string]string{
		"model=H201":             `exhausted: no GPU here is of model "H201": there are NVIDIA A100-SXM4-40GB (2), AMD Instinct MI300X, a model that is not known; this host has `,
		"vendor=amd,model=a100":  `exhausted: no GPU here is of model "a100": there are `,
		"model=a100,mig=2g.10gb": "exhausted: nothing here fits; ",
	} {
		r, err := ParseRequest(request)
		if err == nil {
			_, err = r.Match([]Device{divided, divided, other, {Vendor: "intel", UUID: "GPU-3"}})
		}
		if !errors.Is(err, berth.ErrExhausted) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", request, err, says)
		}
	}
}

func TestMatchNothing(t *testing.T) {
	_, err := Request{Count: All}.Match(nil)
	if !errors.Is(err, berth.ErrExhausted) || !strings.Contains(err.Error(), "no GPUs") {
		t.Error(err)
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add("2")
	f.Add(`device=0,"capabilities=compute,utility",memory=1GiB`)
	f.Fuzz(func(t *testing.T, value string) {
		r, err := ParseRequest(value)
		if err != nil {
			return
		}
		again, err := ParseRequest(r.String())
		if diff := cmp.Diff(r, again); diff != "" || err != nil {
			t.Errorf("%s: %v%s", r, err, diff)
		}
		_, _ = r.Match(mixed())
	})
}
