package hook

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// linkerCache is the content of a glibc ld.so.cache: which library is where. glibc looks a name up by a binary
// search, and takes the first entry of that name that suits the machine.
type linkerCache struct {
	entries []cacheEntry
	hwcaps  []string // names of hardware capabilities, which entries refer to by index
}

type cacheEntry struct {
	name, path string
	flags      uint32
	osVersion  uint32
	hwcap      uint64
}

// The layout is that of glibc's own cache (dl-cache.h), version 1.1, all that glibc has read since 2.2.
const (
	cacheMagic    = "glibc-ld.so.cache1.1"
	oldMagic      = "ld.so-1.7.0"
	cacheHeader   = 48
	cacheEntryLen = 24
	extMagic      = 0xeaa42174
	extHwcaps     = 1
	hwcapNamed    = 1 << 62 // the low half of hwcap is an index into hwcaps

	// What a cache may have. Those of large systems have some thousand entries of 100 bytes.
	// See bounds for its size.
	maxLibraries = 1 << 17 // entries
	maxHwcaps    = 1024    // names of hardware capabilities
)

var (
	errCache = errors.New("not a linker cache of version 1.1")
	errLarge = fmt.Errorf("more than %d libraries, or too long names of them", maxLibraries)
)

// parseLinkerCache reads a cache whose names and paths are of at most so many bytes. It takes nothing in it on trust.
func parseLinkerCache(data []byte, most int) (*linkerCache, error) {
	le := binary.LittleEndian
	if bytes.HasPrefix(data, []byte(oldMagic)) && len(data) >= 16 {
		// Caches of old glibc begin with the older format, and have ours behind it.
		skip := (16 + uint64(le.Uint32(data[12:]))*12 + 7) &^ 7
		if skip > uint64(len(data)) {
			return nil, errCache
		}
		data = data[skip:]
	}
	if len(data) < cacheHeader || !bytes.HasPrefix(data, []byte(cacheMagic)) || data[28]&3 == 1 || data[28]&3 == 3 {
		return nil, errCache
	}
	n := uint64(le.Uint32(data[20:]))
	if n > uint64(len(data)-cacheHeader)/cacheEntryLen {
		return nil, errCache
	}
	if n > maxLibraries {
		return nil, errLarge
	}
	c := &linkerCache{entries: make([]cacheEntry, 0, n)}
	all := texts{all: string(data), most: most}
	for i := range n {
		e := data[cacheHeader+i*cacheEntryLen:]
		name, err1 := all.at(le.Uint32(e[4:]))
		path, err2 := all.at(le.Uint32(e[8:]))
		if err := cmp.Or(err1, err2); err != nil {
			return nil, err
		}
		c.entries = append(c.entries, cacheEntry{name, path, le.Uint32(e), le.Uint32(e[12:]), le.Uint64(e[16:])})
	}
	var err error
	if at := le.Uint32(data[32:]); at != 0 {
		c.hwcaps, err = parseHwcaps(data, uint64(at), &all)
	}
	for _, e := range c.entries {
		if e.hwcap&hwcapNamed != 0 && e.hwcap&0xffffffff >= uint64(len(c.hwcaps)) {
			return nil, errCache
		}
	}
	return c, err
}

func parseHwcaps(data []byte, at uint64, all *texts) ([]string, error) {
	le := binary.LittleEndian
	if at+8 > uint64(len(data)) || le.Uint32(data[at:]) != extMagic {
		return nil, errCache
	}
	n := uint64(le.Uint32(data[at+4:]))
	if n > (uint64(len(data))-at-8)/16 {
		return nil, errCache
	}
	var names []string
	for i := range n {
		s := data[at+8+i*16:]
		off, size := uint64(le.Uint32(s[8:])), uint64(le.Uint32(s[12:]))
		if le.Uint32(s) != extHwcaps {
			continue
		}
		if off+size > uint64(len(data)) {
			return nil, errCache
		}
		for ; size >= 4; off, size = off+4, size-4 {
			name, err := all.at(le.Uint32(data[off:]))
			if err != nil {
				return nil, err
			}
			if len(names) == maxHwcaps {
				return nil, errLarge
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// texts are the strings of a cache. Those that are taken out share the memory of the whole.
type texts struct {
	all   string
	taken int // bytes
	most  int // that may be taken
}

// at is the string at an offset, up to the zero byte that ends it.
func (t *texts) at(off uint32) (string, error) {
	if uint64(off) >= uint64(len(t.all)) {
		return "", errCache
	}
	s := t.all[off:min(uint64(len(t.all)), uint64(off)+4096)]
	end := strings.IndexByte(s, 0)
	if end < 0 {
		return "", errCache
	}
	if t.taken += end + 1; t.taken > t.most {
		return "", errLarge
	}
	return s[:end], nil
}

// bytes writes the cache. Among entries of one name and kind the order stays.
func (c *linkerCache) bytes() []byte {
	entries := slices.Clone(c.entries)
	slices.SortStableFunc(entries, func(a, b cacheEntry) int {
		if r := compareLibraries(b.name, a.name); r != 0 {
			return r
		}
		switch { // as ldconfig sorts: kinds downwards, then entries for special hardware
		case a.flags != b.flags:
			return sign(b.flags > a.flags)
		case (a.hwcap != 0) != (b.hwcap != 0):
			return sign(b.hwcap != 0)
		}
		return 0
	})
	le := binary.LittleEndian
	var texts []byte
	offsets := map[string]uint32{}
	base := uint32(cacheHeader + len(entries)*cacheEntryLen)
	text := func(s string) uint32 {
		if _, ok := offsets[s]; !ok {
			offsets[s] = base + uint32(len(texts))
			texts = append(append(texts, s...), 0)
		}
		return offsets[s]
	}
	out := make([]byte, base)
	copy(out, cacheMagic)
	le.PutUint32(out[20:], uint32(len(entries)))
	out[28] = 2 // little-endian
	for i, e := range entries {
		b := out[cacheHeader+i*cacheEntryLen:]
		le.PutUint32(b, e.flags)
		le.PutUint32(b[4:], text(e.name))
		le.PutUint32(b[8:], text(e.path))
		le.PutUint32(b[12:], e.osVersion)
		le.PutUint64(b[16:], e.hwcap)
	}
	var names []byte
	for _, h := range c.hwcaps {
		names = le.AppendUint32(names, text(h))
	}
	le.PutUint32(out[24:], uint32(len(texts)))
	out = append(out, texts...)
	if len(names) > 0 {
		for len(out)%4 != 0 {
			out = append(out, 0)
		}
		at := uint32(len(out))
		le.PutUint32(out[32:], at)
		for _, v := range []uint32{extMagic, 1, extHwcaps, 0, at + 24, uint32(len(names))} {
			out = le.AppendUint32(out, v)
		}
		out = append(out, names...)
	}
	return out
}

func sign(greater bool) int {
	if greater {
		return 1
	}
	return -1
}

// compareLibraries is the order of glibc's search: by characters, but runs of digits by their value.
func compareLibraries(a, b string) int {
	digit := func(s string) bool { return s != "" && '0' <= s[0] && s[0] <= '9' }
	for a != "" {
		switch {
		case digit(a) && digit(b):
			var x, y string
			x, a = number(a)
			y, b = number(b)
			if len(x) != len(y) {
				return sign(len(x) > len(y))
			}
			if r := strings.Compare(x, y); r != 0 {
				return r
			}
		case digit(a):
			return 1
		case digit(b):
			return -1
		case b == "":
			return 1
		case a[0] != b[0]:
			return sign(a[0] > b[0])
		default:
			a, b = a[1:], b[1:]
		}
	}
	if b != "" {
		return -1
	}
	return 0
}

// number splits digits, without leading zeros, off a string.
func number(s string) (digits, rest string) {
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return strings.TrimLeft(s[:n], "0"), s[n:]
}
