package docker

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/jsonstream"
)

// TestPullTold: what a daemon tells of a layer keeps the sizes that it has told before, and seconds are no bytes.
func TestPullTold(t *testing.T) {
	const said = `
{"status":"Pulling from busy/image","id":"latest"}
{"status":"Pulling fs layer","progressDetail":{},"id":"a"}
{"status":"Downloading","progressDetail":{"current":100,"total":1000},"id":"a"}
{"status":"Retrying in 5 seconds","progressDetail":{},"id":"a"}
{"status":"Download complete","progressDetail":{},"id":"a"}
{"status":"Extracting","progressDetail":{"current":3,"units":"s"},"id":"a"}
{"status":"Pull complete","progressDetail":{},"id":"a"}
{"status":"Already exists","progressDetail":{},"id":"b"}
{"status":"Digest: sha256:x"}`
	want := []berth.Progress{
		{Phase: "download", Layer: "a"},
		{Phase: "download", Layer: "a", Done: 100, Total: 1000},
		{Phase: "retry", Why: "layer a: the daemon could not fetch it"},
		{Phase: "download", Layer: "a", Done: 1000, Total: 1000},
		{Phase: "unpack", Layer: "a", Done: 1000, Total: 1000},
		{Phase: "done", Layer: "a", Done: 1000, Total: 1000},
		{Phase: "done", Layer: "b"},
	}
	var got []berth.Progress
	layers := layersTold{}
	for d := json.NewDecoder(strings.NewReader(said)); d.More(); {
		var m jsonstream.Message
		if err := d.Decode(&m); err != nil {
			t.Fatal(err)
		}
		if p, ok := layers.told(&m); ok {
			got = append(got, p)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("told %+v, want %+v", got, want)
	}
}
