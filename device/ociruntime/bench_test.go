package ociruntime

import (
	"fmt"
	"testing"

	"github.com/berth-project/berth/device/devicetest"
)

// BenchmarkPlan finds out what a container gets, as each call does that makes one.
func BenchmarkPlan(b *testing.B) {
	hook, err := cdiHook()
	if err != nil {
		b.Fatal(err)
	}
	for name, env := range map[string]string{"nvidia": "NVIDIA_VISIBLE_DEVICES=3", "amd": "AMD_VISIBLE_DEVICES=3", "nothing": "PATH=/bin"} {
		b.Run(name, func(b *testing.B) {
			h := devicetest.New(b, devicetest.Options{NVIDIA: 16, AMD: 16, Recorded: true})
			for i := range 60 {
				h.Write(fmt.Sprintf("/usr/lib/x86_64-linux-gnu/libnvidia-%d.so.%s", i, devicetest.DriverVersion), "no library\n")
			}
			cfg, err := parseConfig(fmt.Appendf(nil, "[berth]\nruntime = \"/bin/true\"\ncdi-hook = %q\nroot = %q\n", hook, h.Root))
			if err != nil {
				b.Fatal(err)
			}
			spec := fmt.Appendf(nil, `{"ociVersion": "1.0.2", "process": {"env": [%q]}, "root": {"path": "rootfs"}, "linux": {}}`, env)
			for b.Loop() {
				p, err := (Process{}).planner(cfg)
				if err != nil {
					b.Fatal(err)
				}
				plan, err := p.plan(b.Context(), spec)
				if err != nil || (plan.edits == nil) != (name == "nothing") {
					b.Fatalf("%+v, %v", plan, err)
				}
			}
		})
	}
}
