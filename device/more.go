package device

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// More adds to devices what is costly to find out.
type More func(context.Context, []Device) ([]Device, error)

// brief is how long an answer counts that speaks of devices which can be switched to work in slices alone: no file tells that they were.
const brief = time.Minute

// Kept is a More that asks once a boot, and keeps the answer in a file for all processes: a driver's library can take
// seconds. It asks again where the devices are others, or have another driver, and once a minute where one is divisible. Of
// divided devices it always asks, for new slices can have the numbers of old ones. An answer that adds nothing is not kept,
// nor one of devices that work in slices and have none yet.
func (more More) Kept(file string) More {
	return func(ctx context.Context, devices []Device) ([]Device, error) {
		if slices.ContainsFunc(devices, func(d Device) bool { return len(d.Slices) > 0 }) {
			return more(ctx, devices)
		}
		question := questionOf(devices)
		if all, ok := recall(file, question); ok && len(all) == len(devices) {
			return all, nil
		}
		all, err := more(ctx, devices)
		if err != nil || questionOf(all) == question || slices.ContainsFunc(all, func(d Device) bool { return d.MIG }) {
			return all, err
		}
		kept := answer{Question: question, Brief: slices.ContainsFunc(all, func(d Device) bool { return d.Divisible }), Devices: all}
		data, err := json.Marshal(kept)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(file), 0o700)
		}
		if err == nil {
			err = replaceFile(file, data, 0o600)
		}
		_ = err // asked again next time
		return all, nil
	}
}

// answer is what is kept, as of the time of its file.
type answer struct {
	Question string
	Brief    bool
	Devices  []Device
}

// recall returns the answer to a question that is kept in a file, if it still counts.
func recall(file, question string) ([]Device, bool) {
	f, err := os.Open(file)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	var kept answer
	if json.NewDecoder(f).Decode(&kept) != nil || kept.Question != question {
		return nil, false
	}
	if kept.Brief {
		st, err := f.Stat()
		if err != nil {
			return nil, false
		}
		if age := time.Since(st.ModTime()); age < -time.Second || age >= brief {
			return nil, false
		}
	}
	return kept.Devices, true
}

// questionOf names devices, and the boot in which they are asked about.
func questionOf(devices []Device) string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	data, _ := json.Marshal(devices) // plain structs always can be
	sum := sha256.Sum256(slices.Concat(boot, data))
	return hex.EncodeToString(sum[:])
}
