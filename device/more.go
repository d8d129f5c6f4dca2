package device

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
)

// More adds to devices what is costly to find out.
type More func(context.Context, []Device) ([]Device, error)

// Kept is a More that asks once a boot, and keeps the answer in a file for all processes: a driver's library can take
// seconds. It asks again where the devices are others, or have another driver. Of divided devices it always asks, for
// new slices can have the numbers of old ones. An answer that adds nothing is not kept.
func (more More) Kept(file string) More {
	return func(ctx context.Context, devices []Device) ([]Device, error) {
		if slices.ContainsFunc(devices, func(d Device) bool { return len(d.Slices) > 0 }) {
			return more(ctx, devices)
		}
		question := questionOf(devices)
		var kept struct {
			Question string
			Devices  []Device
		}
		data, err := os.ReadFile(file)
		if err == nil && json.Unmarshal(data, &kept) == nil && kept.Question == question && len(kept.Devices) == len(devices) {
			return kept.Devices, nil
		}
		all, err := more(ctx, devices)
		if err != nil || questionOf(all) == question {
			return all, err
		}
		kept.Question, kept.Devices = question, all
		if data, err = json.Marshal(kept); err == nil {
			err = os.MkdirAll(filepath.Dir(file), 0o700)
		}
		if err == nil {
			err = replaceFile(file, data, 0o600)
		}
		_ = err // asked again next time
		return all, nil
	}
}

// questionOf names devices, and the boot in which they are asked about.
func questionOf(devices []Device) string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	data, _ := json.Marshal(devices) // plain structs always can be
	sum := sha256.Sum256(append(boot, data...))
	return hex.EncodeToString(sum[:])
}
