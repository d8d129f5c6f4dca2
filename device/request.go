package device

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
)

// All is the count of a request for all devices.
const All = -1

// Request is what a task asks for: devices by their ids, or a count of those that fit the rest.
type Request struct {
	Count        int               `json:"count,omitempty"`        // 0 where ids are given; All
	IDs          []string          `json:"device,omitempty"`       // indices, UUIDs, PCI addresses, GPU:SLICE, CDI names
	Vendor       string            `json:"vendor,omitempty"`       // "" is any
	Model        string            `json:"model,omitempty"`        // part of its name
	Memory       int64             `json:"memory,omitempty"`       // bytes: the least that each must have; of a share, its size
	MIG          string            `json:"mig,omitempty"`          // profile of the slices that are asked for: "1g.18gb"
	Shared       bool              `json:"shared,omitempty"`       // a share of one device, with Memory
	AllowBusy    bool              `json:"allow_busy,omitempty"`   // devices, too, that processes of others have open
	Preflight    bool              `json:"preflight,omitempty"`    // look in the container whether all open, before a step's command
	Capabilities []string          `json:"capabilities,omitempty"` // of the driver, for NVIDIA's devices
	Options      map[string]string `json:"options,omitempty"`      // of Docker's drivers; nothing of it is handed on
}

// keys are the keys of requests, in the order in which help shows them.
var keys = []string{"count", "device", "vendor", "driver", "model", "memory", "mig", "shared", "allow_busy", "preflight", "capabilities", "options"}

// vendorOf are the vendors by the names that --gpus takes for them: their own, and those of Docker's drivers.
var vendorOf = map[string]string{
	"nvidia": "nvidia", "nvidia.cdi": "nvidia", "nvidia.runtime-hook": "nvidia", "amd": "amd", "intel": "intel", "cdi": "", "": "",
}

// capabilityWords are the capabilities that requests may name.
var capabilityWords = append(slices.Clone(nvidiaWords), "ngx", "gpu", "nvidia", "amd", "intel", "all")

// ParseRequest reads a value of --gpus: all that docker run --gpus takes, and more. It is one record of
// comma-separated fields, each KEY=VALUE, a count, or an id:
//
//	2    all    device=0    "device=0,1"    GPU-UUID    MIG-UUID    0:1    0000:06:00.0    nvidia.com/gpu=0
//	vendor=amd,count=1    model=H200    memory=40GiB    mig=1g.18gb,count=2    shared,memory=8GiB    "capabilities=compute,utility"
//
// What Docker misreads without a word is refused with the way to write it.
func ParseRequest(value string) (Request, error) {
	all, err := fields(value)
	if err != nil {
		return Request{}, err
	}
	p := parser{}
	for i, f := range all {
		if err := p.field(f, all[:i]); err != nil {
			return Request{}, fmt.Errorf("GPUs %q: %w: %w", value, berth.ErrInvalid, err)
		}
	}
	r, err := p.finish()
	if err != nil {
		return Request{}, fmt.Errorf("GPUs %q: %w: %w", value, berth.ErrInvalid, err)
	}
	return r, nil
}

// parser gathers the fields of a request.
type parser struct {
	r       Request
	counted string // the field that gave the count
	driver  string
}

func (p *parser) field(f field, before []field) error {
	switch {
	case f.bare && (f.key == "shared" || f.key == "allow_busy" || f.key == "preflight"):
		return p.set(f.key, "true")
	case f.bare && isID(f.key):
		p.r.IDs = append(p.r.IDs, f.key)
		return nil
	case f.bare:
		return p.count(f, before)
	case strings.Contains(f.key, "/"):
		p.r.IDs = append(p.r.IDs, f.text) // a CDI name
		return nil
	case f.key == "count":
		return p.count(f, nil)
	default:
		return p.set(f.key, f.value)
	}
}

// count takes a count; a bare one may be what was meant as more of the field before it.
func (p *parser) count(f field, before []field) error {
	value := f.value
	if f.bare {
		value = f.key
	}
	for _, b := range slices.Backward(before) {
		if b.bare {
			continue
		}
		if b.key == "device" || b.key == "capabilities" || b.key == "options" {
			return fmt.Errorf("%q stands alone and is no part of %q; quote the whole field: '\"%s,%s\"'", value, b.text, b.text, value)
		}
		break
	}
	n, err := parseCount(value)
	switch {
	case err != nil && f.bare:
		return fmt.Errorf("%q is neither a count nor an id; write a number, all, a UUID, or KEY=VALUE with one of %s", value, strings.Join(keys, ", "))
	case err != nil:
		return err
	case n < All:
		return fmt.Errorf("the count %d is negative", n)
	case n > maxCount:
		return fmt.Errorf("the count %d is more than any machine has", n)
	case p.counted != "":
		return fmt.Errorf("two counts: %s and %s", p.counted, f.text)
	}
	p.r.Count, p.counted = n, f.text
	return nil
}

// set takes the value of a key, except a count.
func (p *parser) set(key, value string) (err error) {
	if value == "" {
		return fmt.Errorf("%q has no value", key)
	}
	switch key {
	case "device":
		p.r.IDs = append(p.r.IDs, strings.Split(value, ",")...)
	case "vendor":
		if value == "cdi" || strings.Contains(value, ".") {
			return fmt.Errorf("there is no vendor %q; there are nvidia, amd and intel", value)
		}
		return p.vendor(key, value)
	case "driver":
		p.driver = value
		return p.vendor(key, value)
	case "model":
		p.r.Model = value
	case "memory":
		p.r.Memory, err = berth.ParseSize(value)
		if err == nil && p.r.Memory == 0 {
			err = fmt.Errorf("memory=%s is no memory", value)
		}
	case "mig":
		if p.r.MIG = strings.ToLower(value); !migForm.MatchString(p.r.MIG) {
			err = fmt.Errorf("mig=%s is no MIG profile; they are written as in 1g.18gb", value)
		}
	case "shared":
		if p.r.Shared, err = strconv.ParseBool(value); err != nil {
			err = fmt.Errorf("shared=%s is neither true nor false; shared alone is true", value)
		}
	case "allow_busy":
		if p.r.AllowBusy, err = strconv.ParseBool(value); err != nil {
			err = fmt.Errorf("allow_busy=%s is neither true nor false; allow_busy alone is true", value)
		}
	case "preflight":
		if p.r.Preflight, err = strconv.ParseBool(value); err != nil {
			err = fmt.Errorf("preflight=%s is neither true nor false; preflight alone is true", value)
		}
	case "capabilities":
		p.r.Capabilities = strings.Split(value, ",")
		for _, word := range p.r.Capabilities {
			if !slices.Contains(capabilityWords, word) {
				return fmt.Errorf("there is no capability %q; there are %s", word, strings.Join(capabilityWords, ", "))
			}
		}
	case "options":
		p.r.Options, err = parseOptions(value)
	default:
		return fmt.Errorf("there is no key %q; there are %s", key, strings.Join(keys, ", "))
	}
	return err
}

func (p *parser) vendor(key, value string) error {
	vendor, ok := vendorOf[value]
	switch {
	case !ok:
		return fmt.Errorf("there is no %s %q; there are nvidia, amd and intel", key, value)
	case vendor == "":
		return nil
	case p.r.Vendor != "" && p.r.Vendor != vendor:
		return fmt.Errorf("two vendors: %s and %s", p.r.Vendor, vendor)
	}
	p.r.Vendor = vendor
	return nil
}

// finish checks what the fields say together.
func (p *parser) finish() (Request, error) {
	r := p.r
	var ids []string
	for _, id := range r.IDs {
		if !isID(id) && !isIndex(id) && id != "all" {
			return r, fmt.Errorf("%q is no device; write an index, a UUID, a PCI address, GPU:SLICE or a CDI name as in nvidia.com/gpu=0", id)
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
		if p.driver == "cdi" && !strings.Contains(id, "=") {
			return r, fmt.Errorf("driver=cdi and the device %q, which has no vendor; write a CDI name as in nvidia.com/gpu=%s", id, id)
		}
	}
	r.IDs = ids
	if len(ids) == 1 && ids[0] == "all" && p.counted == "" {
		r.IDs, r.Count, p.counted = nil, All, "all"
	}
	switch {
	case slices.Contains(r.IDs, "all"):
		return r, fmt.Errorf("all devices, and some")
	case p.counted != "" && len(r.IDs) > 0:
		return r, fmt.Errorf("the count %s and devices (%s); give one of them", strings.TrimPrefix(p.counted, "count="), strings.Join(r.IDs, ", "))
	case p.driver == "cdi" && len(r.Options) > 0:
		return r, fmt.Errorf("driver=cdi and options, of which it has none")
	case p.driver == "cdi" && len(r.IDs) == 0:
		return r, fmt.Errorf("driver=cdi has no counts; name devices as in device=nvidia.com/gpu=0")
	case p.counted == "" && len(r.IDs) == 0:
		r.Count = 1
	}
	return r, r.together()
}

// together checks what the parts of a request demand of each other.
func (r *Request) together() error {
	switch {
	case r.MIG != "" && r.Vendor != "" && r.Vendor != "nvidia":
		return fmt.Errorf("mig=%s and the vendor %s; MIG slices are NVIDIA's", r.MIG, r.Vendor)
	case r.MIG != "" && r.Shared:
		return fmt.Errorf("mig=%s and shared; a MIG slice is a share already", r.MIG)
	case r.Shared && r.Memory == 0:
		return fmt.Errorf("shared without memory; say how much of the GPU's memory the task takes, as in shared,memory=8GiB")
	case r.Shared && (r.Count > 1 || r.Count == All || len(r.IDs) > 1):
		return fmt.Errorf("shared and more than one GPU; a share is of one GPU")
	case len(r.IDs) > 0 && (r.Model != "" || r.MIG != "" || r.Memory != 0 && !r.Shared):
		return fmt.Errorf("devices (%s) and what they must be like; give one of them", strings.Join(r.IDs, ", "))
	}
	return nil
}

// ParseRequests reads what a task document says in resources.gpus: a count, a text as ParseRequest takes it, an
// object with the keys of a request, or a list of such texts and objects.
func ParseRequests(doc json.RawMessage) ([]Request, error) {
	doc = bytes.TrimSpace(doc)
	if len(doc) == 0 || string(doc) == "null" {
		return nil, nil
	}
	if doc[0] != '[' {
		r, err := parseItem(doc)
		if err != nil {
			return nil, err
		}
		return []Request{r}, nil
	}
	var items []json.RawMessage
	if err := json.Unmarshal(doc, &items); err != nil {
		return nil, fmt.Errorf("GPUs: %w: %w", berth.ErrInvalid, err)
	}
	var requests []Request
	for i, item := range items {
		r, err := parseItem(item)
		if err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		requests = append(requests, r)
	}
	return requests, nil
}

func parseItem(item json.RawMessage) (Request, error) {
	dec := json.NewDecoder(bytes.NewReader(item))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return Request{}, fmt.Errorf("GPUs: %w: %w", berth.ErrInvalid, err)
	}
	switch v := v.(type) {
	case string:
		return ParseRequest(v)
	case json.Number:
		return ParseRequest(v.String())
	case map[string]any:
		return parseObject(v)
	default:
		return Request{}, fmt.Errorf("GPUs: %w: %s is no count, text or object", berth.ErrInvalid, item)
	}
}

// parseObject reads a request whose keys are members of an object. Values are as in the text, or numbers, truth
// values, lists of texts and, for options, an object.
func parseObject(object map[string]any) (Request, error) {
	p := parser{}
	bad := func(err error) (Request, error) {
		return Request{}, fmt.Errorf("GPUs: %w: %w", berth.ErrInvalid, err)
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		value, err := textOf(key, object[key])
		if err != nil {
			return bad(err)
		}
		if err := p.field(field{text: key + "=" + value, key: key, value: value}, nil); err != nil {
			return bad(err)
		}
	}
	r, err := p.finish()
	if err != nil {
		return bad(err)
	}
	return r, nil
}

func textOf(key string, value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		return strconv.FormatBool(v), nil
	case []any:
		var texts []string
		for _, e := range v {
			text, err := textOf(key, e)
			if err != nil {
				return "", err
			}
			texts = append(texts, text)
		}
		return strings.Join(texts, ","), nil
	case map[string]any:
		var texts []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			text, err := textOf(k, v[k])
			if err != nil {
				return "", err
			}
			texts = append(texts, `"`+strings.ReplaceAll(k+"="+text, `"`, `""`)+`"`)
		}
		return strings.Join(texts, ","), nil
	default:
		return "", fmt.Errorf("%q has no value", key)
	}
}

// String writes a request as ParseRequest reads it.
func (r Request) String() string {
	var parts []string
	add := func(key, value string) {
		if value == "" {
			return
		}
		part := key + "=" + value
		if strings.ContainsAny(part, ",\"\n") {
			part = `"` + strings.ReplaceAll(part, `"`, `""`) + `"`
		}
		parts = append(parts, part)
	}
	switch {
	case r.Count == All:
		parts = append(parts, "all")
	case len(r.IDs) == 0:
		parts = append(parts, strconv.Itoa(r.Count))
	}
	add("device", strings.Join(r.IDs, ","))
	add("vendor", r.Vendor)
	add("model", r.Model)
	if r.Memory > 0 {
		add("memory", berth.FormatSize(r.Memory))
	}
	add("mig", r.MIG)
	if r.Shared {
		parts = append(parts, "shared")
	}
	if r.AllowBusy {
		parts = append(parts, "allow_busy")
	}
	if r.Preflight {
		parts = append(parts, "preflight")
	}
	add("capabilities", strings.Join(r.Capabilities, ","))
	var options []string
	for _, k := range slices.Sorted(maps.Keys(r.Options)) {
		options = append(options, `"`+strings.ReplaceAll(k+"="+r.Options[k], `"`, `""`)+`"`)
	}
	add("options", strings.Join(options, ","))
	return strings.Join(parts, ",")
}
