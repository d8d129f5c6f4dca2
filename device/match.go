package device

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
)

// Unit is what is lent at a time: a device that is not divided, or a slice of one that is.
type Unit struct {
	Device Device
	Slice  *Slice // nil for the whole device
}

// UUID names a unit for people and for programs in containers. That of a slice only the driver's library tells: where it is
// not asked, or does not answer, it is the key.
func (u Unit) UUID() string {
	if u.Slice != nil {
		return u.Slice.UUID
	}
	return u.Device.UUID
}

// Key names a unit wherever processes must agree that know more or less of it, as in the ledger: of a slice by its GPU and
// the numbers of its instances, which every process sees.
func (u Unit) Key() string {
	if u.Slice != nil {
		return u.Device.key(*u.Slice)
	}
	return u.Device.UUID
}

func (d Device) key(s Slice) string { return fmt.Sprintf("MIG-%s/%d/%d", d.UUID, s.GI, s.CI) }

// Is reports whether an id is the unit's key, or the name that it has or once had in its place.
func (u Unit) Is(id string) bool { return id == u.Key() || id == u.UUID() }

// Memory is a unit's memory in bytes; 0 if it is unknown.
func (u Unit) Memory() int64 {
	if u.Slice != nil {
		return u.Slice.Memory
	}
	return u.Device.Memory
}

func (u Unit) String() string {
	if u.Slice != nil {
		return fmt.Sprintf("%s %d:%d (%s, %s)", u.Device.Vendor, u.Device.Index, u.Slice.Index, cmp.Or(u.Slice.Profile, "slice"), u.Slice.UUID)
	}
	return u.Device.String()
}

// short names a unit among those of its host: "nvidia 0", "nvidia 0:1".
func (u Unit) short() string {
	name := u.Device.Vendor + " " + strconv.Itoa(u.Device.Index)
	if u.Slice != nil {
		name += ":" + strconv.Itoa(u.Slice.Index)
	}
	return name
}

// Units are the units of a host, in the order of its devices. One that works in slices alone and has none is none.
func Units(inventory []Device) []Unit {
	var units []Unit
	for _, d := range inventory {
		if len(d.Slices) == 0 && !d.MIG {
			units = append(units, Unit{Device: d})
		}
		for i := range d.Slices {
			units = append(units, Unit{Device: d, Slice: &d.Slices[i]})
		}
	}
	return units
}

var (
	migForm   = regexp.MustCompile(`^[1-9][0-9]*g\.[1-9][0-9]*gb(\+[a-z0-9.]+)?$`)
	pciForm   = regexp.MustCompile(`^(?:([0-9a-f]{4}|[0-9a-f]{8}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])$`)
	sliceForm = regexp.MustCompile(`^([0-9]{1,6}):([0-9]{1,6})$`)
	intelForm = regexp.MustCompile(`^[0-9a-f]{4}-[0-9a-f]{2}-[0-9a-f]{2}-[0-7]-0x[0-9a-f]{4}$`)
	amdForm   = regexp.MustCompile(`^(0[xX][0-9A-Fa-f]+|GPU-[0-9a-f:.]+(/[0-9]+)?)$`)
)

// isID tells names of devices, beside bare indices, from counts and other words.
func isID(s string) bool {
	low := strings.ToLower(s)
	return uuidForm.MatchString(s) || sliceForm.MatchString(s) || pciForm.MatchString(low) || intelForm.MatchString(low) ||
		amdForm.MatchString(s) || cdi.IsQualified(s)
}

// Match returns the units of an inventory that a request may be given: exactly those that it names, in its order,
// or all that fit, of which it wants Count (All: every one).
//
// A request that names neither ids, memory nor a MIG profile means whole devices, where there are any. Without a
// vendor, a count is of devices of one vendor. What the inventory could never give is ErrExhausted, an id that it
// does not have ErrNotFound, one that means several or a divided device ErrInvalid; the error tells the inventory.
func (r Request) Match(inventory []Device) ([]Unit, error) {
	var units []Unit
	var err error
	if len(r.IDs) > 0 {
		units, err = r.named(inventory)
	} else {
		units, err = r.fitting(inventory)
	}
	if err != nil {
		return nil, fmt.Errorf("GPUs %s: %w; %s", r, err, Inventory(inventory))
	}
	return units, nil
}

func (r Request) named(inventory []Device) ([]Unit, error) {
	var units []Unit
	for _, id := range r.IDs {
		found, err := r.find(id, inventory)
		if err != nil {
			return nil, err
		}
		for _, u := range found {
			if r.Vendor != "" && u.Device.Vendor != r.Vendor {
				return nil, fmt.Errorf("%w: %s is no device of %s", berth.ErrInvalid, id, r.Vendor)
			}
			if r.Shared && u.Memory() == 0 {
				return nil, fmt.Errorf("%w: the memory of %s is not known, so that no shares of it can be counted; ask for the whole of it", berth.ErrExhausted, id)
			}
			if r.Shared && u.Memory() < r.Memory {
				return nil, fmt.Errorf("%w: %s has %s of memory", berth.ErrExhausted, id, berth.SizeInWords(u.Memory()))
			}
			if !slices.ContainsFunc(units, func(o Unit) bool { return o.Key() == u.Key() }) {
				units = append(units, u)
			}
		}
	}
	return units, nil
}

// find finds what one id names: one unit; for the unique id of a divided GPU of AMD's, and for "all" of a CDI
// kind, several.
func (r Request) find(id string, inventory []Device) ([]Unit, error) {
	vendor := r.Vendor
	if name, err := cdi.ParseName(id); err == nil {
		short, ok := strings.CutSuffix(name.Vendor, ".com")
		if !ok || name.Class != "gpu" || vendorOf[short] != short {
			return nil, fmt.Errorf("%w: %s is of no kind of GPUs that berth lends (nvidia.com/gpu, amd.com/gpu, intel.com/gpu)", berth.ErrInvalid, id)
		}
		vendor, id = short, name.Device
	}
	var of []Device
	for _, d := range inventory {
		if vendor == "" || d.Vendor == vendor {
			of = append(of, d)
		}
	}
	var found []Unit
	for _, d := range of {
		if isIndex(id) && strconv.Itoa(d.Index) != strings.TrimLeft(id[:len(id)-1], "0")+id[len(id)-1:] {
			continue
		}
		units, err := named(id, d)
		if err != nil {
			return nil, err
		}
		found = append(found, units...)
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%w: no device %s", berth.ErrNotFound, id)
	case len(found) > 1 && (isIndex(id) || sliceForm.MatchString(id)):
		return nil, fmt.Errorf("%w: %s is a device of several vendors; say whose, as in vendor=%s", berth.ErrInvalid, id, found[0].Device.Vendor)
	}
	return found, nil
}

// named returns the units of a device that an id names.
func named(id string, d Device) ([]Unit, error) {
	if id == "all" {
		return Units([]Device{d}), nil
	}
	for i, s := range d.Slices {
		m := sliceForm.FindStringSubmatch(id)
		called := func(name string) bool {
			return strings.EqualFold(name, id) || strings.EqualFold(strings.ReplaceAll(name, "/", "-"), id) // the latter in CDI names
		}
		if called(s.UUID) || called(d.key(s)) ||
			m != nil && m[1] == strconv.Itoa(d.Index) && m[2] == strconv.Itoa(s.Index) {
			return []Unit{{Device: d, Slice: &d.Slices[i]}}, nil
		}
	}
	whole := isIndex(id) || strings.EqualFold(d.UUID, id) || samePCI(d.PCI, id) || sameUniqueID(d, id)
	switch {
	case !whole:
		return nil, nil
	case len(d.Slices) > 0:
		return nil, fmt.Errorf("%w: %s is divided into slices; ask for one of them, as in device=%d:0 or mig=PROFILE", berth.ErrInvalid, d, d.Index)
	}
	if err := d.Undivided(); err != nil {
		return nil, err
	}
	return []Unit{{Device: d}}, nil
}

func samePCI(address, id string) bool {
	m := pciForm.FindStringSubmatch(strings.ToLower(id))
	a := pciForm.FindStringSubmatch(strings.ToLower(address))
	if m == nil || a == nil {
		return false
	}
	domain := func(s string) string { return cmp.Or(strings.TrimLeft(s, "0"), "0") }
	return m[2] == a[2] && domain(m[1]) == domain(a[1])
}

// sameUniqueID compares AMD's unique ids: those of its GPUs' UUIDs, GPU-HEX, and the same as 0xHEX.
func sameUniqueID(d Device, id string) bool {
	if d.Vendor != "amd" {
		return false
	}
	own, _, _ := strings.Cut(strings.TrimPrefix(d.UUID, "GPU-"), "/")
	low := strings.ToLower(id)
	hex, ok := strings.CutPrefix(low, "0x")
	if !ok {
		hex, ok = strings.CutPrefix(low, "gpu-")
	}
	return ok && strings.TrimLeft(hex, "0") == strings.TrimLeft(own, "0")
}

func (r Request) fitting(inventory []Device) ([]Unit, error) {
	var fit []Unit
	counts := map[string]int{}
	for _, u := range Units(inventory) {
		if r.fits(u) {
			fit = append(fit, u)
		}
	}
	if r.MIG == "" && r.Memory == 0 {
		whole := slices.DeleteFunc(slices.Clone(fit), func(u Unit) bool { return u.Slice != nil })
		if len(whole) > 0 {
			fit = whole
		}
	}
	most := 0
	for _, u := range fit {
		counts[u.Device.Vendor]++
		most = max(most, counts[u.Device.Vendor])
	}
	switch {
	case r.Count == 0:
		return nil, nil
	case len(fit) == 0 && r.Model != "" && !slices.ContainsFunc(inventory, Request{Vendor: r.Vendor, Model: r.Model}.of):
		return nil, fmt.Errorf("%w: no GPU here is of model %q%s", berth.ErrExhausted, r.Model, modelsHere(inventory))
	case len(fit) == 0:
		return nil, fmt.Errorf("%w: nothing here fits%s", berth.ErrExhausted, r.unknown(inventory))
	case r.Count > most:
		return nil, fmt.Errorf("%w: %d fit%s", berth.ErrExhausted, most, r.unknown(inventory))
	}
	return fit, nil
}

// unknown says of how many units it is not known whether they fit, and of a device that has none what to do; "" of none.
func (r Request) unknown(inventory []Device) string {
	var text strings.Builder
	for _, what := range []struct {
		name   string
		like   string
		asked  bool
		lacks  func(Unit) bool
		others Request
	}{
		{"memory", "device=0", r.Memory > 0, func(u Unit) bool { return u.Memory() == 0 }, Request{Vendor: r.Vendor, Model: r.Model, MIG: r.MIG, Shared: r.Shared}},
		{"profile", "device=0:0", r.MIG != "", func(u Unit) bool { return u.Slice != nil && u.Slice.Profile == "" }, Request{Vendor: r.Vendor, Model: r.Model}},
	} {
		n := 0
		for _, u := range Units(inventory) {
			if what.asked && what.lacks(u) && what.others.fits(u) {
				n++
			}
		}
		switch {
		case n == 0:
		case r.Shared:
			fmt.Fprintf(&text, ", but the %s of %d is not known: no shares of such can be counted, and the whole is lent to who names it, as in %s", what.name, n, what.like)
		default:
			fmt.Fprintf(&text, ", but the %s of %d is not known: such are lent to who names them, as in %s", what.name, n, what.like)
		}
	}
	for _, d := range inventory {
		if err := d.Undivided(); err != nil && r.of(d) {
			_, why, _ := strings.Cut(err.Error(), ": ")
			text.WriteString(", and " + why)
			break
		}
	}
	return text.String()
}

// of reports whether a device is of the vendor and model that are asked for.
func (r Request) of(d Device) bool {
	vendor := r.vendor()
	return (vendor == "" || d.Vendor == vendor) && (r.Model == "" || strings.Contains(squeeze(d.Model), squeeze(r.Model)))
}

// vendor is that of which devices are asked for: the one that is named, or whose driver's capabilities are; "" is any.
func (r Request) vendor() string {
	if r.Vendor != "" || len(r.IDs) > 0 {
		return r.Vendor
	}
	for _, word := range r.Capabilities {
		switch word {
		case "gpu", "all":
		case "amd", "intel":
			return word
		default:
			return "nvidia"
		}
	}
	return ""
}

// modelsHere tells what models there are, and how many of each.
func modelsHere(inventory []Device) string {
	counts := map[string]int{}
	var names []string
	for _, d := range inventory {
		name := cmp.Or(d.Model, "a model that is not known")
		if counts[name]++; counts[name] == 1 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	for i, name := range names {
		if counts[name] > 1 {
			names[i] = fmt.Sprintf("%s (%d)", name, counts[name])
		}
	}
	return ": there are " + strings.Join(names, ", ")
}

func (r Request) fits(u Unit) bool {
	switch {
	case !r.of(u.Device),
		r.Memory > 0 && u.Memory() < r.Memory,
		r.Shared && u.Slice != nil:
		return false
	case r.MIG != "":
		return u.Slice != nil && strings.EqualFold(u.Slice.Profile, r.MIG)
	}
	return true
}

// squeeze brings names of models to one form: "NVIDIA H200" and "nvidia-h200" are the same.
func squeeze(model string) string {
	return strings.NewReplacer(" ", "", "-", "", "_", "").Replace(strings.ToLower(model))
}

// Inventory tells in one line what a host has.
func Inventory(inventory []Device) string {
	units := Units(inventory)
	if len(units) == 0 {
		return "this host has no GPUs that could be lent"
	}
	const shown = 8
	var names []string
	for _, u := range units[:min(shown, len(units))] {
		name := u.String()
		if u.Memory() > 0 {
			name = strings.TrimSuffix(name, ")") + ", " + berth.SizeInWords(u.Memory()) + ")"
		}
		names = append(names, name)
	}
	text := "this host has " + strings.Join(names, ", ")
	if more := len(units) - shown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
