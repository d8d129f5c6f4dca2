package oci_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/enginetest"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/image"
)

// TestSuite runs the suite that every engine must pass.
func TestSuite(t *testing.T) {
	for _, rt := range []string{"direct", "runc"} {
		t.Run(rt, func(t *testing.T) { enginetest.Run(t, suiteEnv(t, rt), nil) })
	}
}

func suiteEnv(t *testing.T, rt string) *enginetest.Env {
	t.Helper()
	cfg := oci.Config{Dir: t.TempDir(), Runtime: rt, Idle: 300 * time.Millisecond}
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
	return &enginetest.Env{
		Engine: e, Image: img, Dir: t.TempDir(),
		Again: func(context.Context) (berth.Engine, error) { return oci.New(cfg) },
		Lacks: map[enginetest.Ability]string{},
	}
}
