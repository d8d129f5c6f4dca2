package oci_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/enginetest"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/image"
	"github.com/moby/sys/userns"
)

// TestSuite runs the suite that every engine must pass.
func TestSuite(t *testing.T) {
	var skips map[string]string
	if v := os.Getenv(skipsVar); v != "" {
		if err := json.Unmarshal([]byte(v), &skips); err != nil {
			t.Fatal(err)
		}
	}
	for _, rt := range []string{"direct", "runc", "crun"} {
		t.Run(rt, func(t *testing.T) { enginetest.Run(t, suiteEnv(t, rt), skips) })
	}
}

// By these variables a test that runs the suite in other surroundings says what they lack, and which checks
// cannot be there.
const (
	lacksVar = "BERTH_TEST_LACKS"
	skipsVar = "BERTH_TEST_SKIPS"
	// lendableVar holds the device nodes that stand for GPUs, where the test cannot make them.
	lendableVar = "BERTH_TEST_LENDABLE"
)

func suiteEnv(t *testing.T, rt string) *enginetest.Env {
	t.Helper()
	cfg := oci.Config{Dir: t.TempDir(), Runtime: rt, Idle: 300 * time.Millisecond}
	cfg.Images.Rootless = userns.RunningInUserNS()
	e, err := oci.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	var root bytes.Buffer
	if err := enginetest.RootFS(t.Context(), &root); err != nil {
		t.Fatal(err)
	}
	img, err := e.Images().Import(t.Context(), &root, "busybox", image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	lacks := map[enginetest.Ability]string{enginetest.Ports: "it publishes none, and refuses them by name"}
	if v := os.Getenv(lacksVar); v != "" {
		if err := json.Unmarshal([]byte(v), &lacks); err != nil {
			t.Fatal(err)
		}
	}
	return &enginetest.Env{
		Engine: e, Image: img, Dir: t.TempDir(), Lendable: lendable(t),
		Again: func(context.Context) (berth.Engine, error) { return oci.New(cfg) },
		Lacks: lacks,
	}
}

// lendable are the device nodes that stand for GPUs.
func lendable(t testing.TB) (nodes []berth.Node) {
	t.Helper()
	var err error
	if v := os.Getenv(lendableVar); v != "" {
		err = json.Unmarshal([]byte(v), &nodes)
	} else {
		nodes, err = enginetest.FakeGPUs(t.TempDir())
	}
	if err != nil {
		t.Fatal(err)
	}
	return nodes
}
