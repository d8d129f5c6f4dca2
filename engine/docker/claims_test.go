package docker

import (
	"slices"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
)

// A pull under one name says nothing of the name under which an image was loaded: prune spares it.
func TestClaimedLocal(t *testing.T) {
	e := &Engine{cfg: Config{Dir: t.TempDir()}}
	i := image.Info{Image: berth.Image{ID: "sha256:1"}, Refs: []string{"local", "other", "reg/img:1"}}
	e.claimImage(berth.Image{Ref: "local", ID: i.ID}, false)
	e.claimImage(berth.Image{Ref: "reg/img:1", ID: i.ID}, true)
	names, local, pulled, used := e.claimed(i)
	if !slices.Equal(names, []string{"local", "reg/img:1"}) || !slices.Equal(local, []string{"local"}) || !pulled || used.IsZero() {
		t.Errorf("claimed %v, of them local %v, pulled %v, used %s", names, local, pulled, used)
	}
	i.Local = local
	if !(image.PruneOptions{}).Spares(i) || (image.PruneOptions{All: true}).Spares(i) {
		t.Error("prune does not spare the image, or does with All")
	}
}

// An image that was loaded without a name was not pulled; prune has no name to spare it for.
func TestClaimedByID(t *testing.T) {
	e := &Engine{cfg: Config{Dir: t.TempDir()}}
	i := image.Info{Image: berth.Image{ID: "sha256:2"}}
	e.claimImage(berth.Image{ID: i.ID}, false)
	if names, local, pulled, used := e.claimed(i); !slices.Equal(names, []string{i.ID}) || len(local) > 0 || pulled || used.IsZero() {
		t.Errorf("claimed %v, of them local %v, pulled %v, used %s", names, local, pulled, used)
	}
	e.claimImage(berth.Image{ID: i.ID}, true)
	if _, _, pulled, _ := e.claimed(i); !pulled {
		t.Error("it was pulled, and is not said to be")
	}
	i.Refs = []string{"the-users:1"}
	if names, local, pulled, used := e.claimed(i); len(names) > 0 || len(local) > 0 || pulled || !used.IsZero() {
		t.Errorf("the user has named it since: claimed %v, of them local %v, pulled %v, used %s", names, local, pulled, used)
	}
}
