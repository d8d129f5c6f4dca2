package oci

import (
	"fmt"
	"testing"
)

// What is remembered of a user is each caller's own.
func TestIdentities(t *testing.T) {
	e := &Engine{}
	e.users.m = map[string]identity{}
	e.users.m["sha256:1\x00me\x00g"] = identity{Home: "/h"}
	id := e.users.m["sha256:1\x00me\x00g"]
	id.AdditionalGids = []uint32{1, 2}
	e.users.m["sha256:1\x00me\x00g"] = id
	got, err := e.user("sha256:1", "me", []string{"g"})
	if err != nil || got.Home != "/h" || fmt.Sprint(got.AdditionalGids) != "[1 2]" {
		t.Fatalf("%+v, %v", got, err)
	}
	got.AdditionalGids[0] = 9
	if again, _ := e.user("sha256:1", "me", []string{"g"}); again.AdditionalGids[0] != 1 {
		t.Errorf("a caller changed what is remembered: %v", again.AdditionalGids)
	}
}
