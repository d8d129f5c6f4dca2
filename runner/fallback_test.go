package runner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth"
)

// TestFallbackTaken: which image ran in place of one that cannot be had is in the result, in the task's log and told once,
// and two steps with the same image have each its own in its place.
func TestFallbackTaken(t *testing.T) {
	b := newTestbed(t)
	b.engine.pull = func(_ context.Context, ref string) error {
		if ref == "one" || ref == "two" {
			return fmt.Errorf("image %s: %w", ref, berth.ErrNotFound)
		}
		return nil
	}
	first, second := sh("true"), sh("exit 3")
	first.Image, first.Fallbacks = "one", []string{"two", "three", "five"}
	second.Image, second.Fallbacks = "one", []string{"four"}
	second.IgnoreError = true
	task := berth.Task{ID: "t", Steps: []berth.Step{first, second}}
	var warned []string
	res, err := b.Run(timeout(t), task, Hooks{Warn: func(s string) { warned = append(warned, s) }})
	if err != nil || res.State != berth.Complete {
		t.Fatal(res, err)
	}
	if res.Image != "three" || res.ImageDigest != digestOf("three") {
		t.Errorf("the result names %s %s", res.Image, res.ImageDigest)
	}
	if ran := []string{res.Steps[0].Image.Ref, res.Steps[1].Image.Ref}; !slices.Equal(ran, []string{"three", "four"}) {
		t.Errorf("the steps had %v", ran)
	}
	want := []string{
		"image one cannot be had, and three is used in its place: image one: not found; image two: not found",
		"image one cannot be had, and four is used in its place: image one: not found",
	}
	if !slices.Equal(warned, want) {
		t.Errorf("told %q", warned)
	}
	var log []string
	for _, l := range must(b.Record(t.Context(), "t")).Log {
		log = append(log, l.Text)
	}
	for _, line := range append(want, "image three is "+digestOf("three")+", image four is "+digestOf("four")) {
		if !slices.Contains(log, line) {
			t.Errorf("the log has no %q: %q", line, log)
		}
	}

	task.ID, task.Steps[1].IgnoreError = "failed", false
	res, err = b.Run(timeout(t), task, Hooks{})
	if err != nil || res.State != berth.ExecutorError || res.Image != "four" || res.ImageDigest != digestOf("four") {
		t.Errorf("the result of one that fails: %+v, %v", res, err)
	}
}

func digestOf(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// TestFirstNamed: an image of a source that nobody reads refuses no task that has another in its place.
func TestFirstNamed(t *testing.T) {
	for _, tt := range []struct {
		images    []string
		want, err string
	}{
		{[]string{"library://lab/img"}, "library://lab/img", ""}, // the engine refuses it
		{[]string{"library://lab/img", "oras://lab/img", "img.sif", "debian"}, "debian", ""},
		{[]string{"debian", "oras://lab/img"}, "debian", ""},
		{[]string{"Debian Linux", "sha256:0123"}, "sha256:0123", ""},
		{[]string{"library://lab/img", "img.sif"}, "", "none of the images can be had: image \"library://lab/img\": "},
	} {
		got, err := firstNamed(&berth.Step{Image: tt.images[0], Fallbacks: tt.images[1:]})
		if got != tt.want || (err != nil) != (tt.err != "") || err != nil && (!strings.HasPrefix(err.Error(), tt.err) || !errors.Is(err, berth.ErrUnsupported)) {
			t.Errorf("%q: %q, %v", tt.images, got, err)
		}
	}
}
