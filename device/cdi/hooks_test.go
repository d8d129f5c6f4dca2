package cdi_test

import (
	"slices"
	"testing"

	"github.com/berth-project/berth/device/cdi"
	specs "tags.cncf.io/container-device-interface/specs-go"
)

func TestCloseHooks(t *testing.T) {
	bare, own := &specs.Hook{HookName: "createContainer", Path: "/a"}, &specs.Hook{HookName: "prestart", Path: "/b", Env: []string{"A=1"}}
	e := &cdi.Edits{Hooks: []*specs.Hook{bare, own}}
	cdi.CloseHooks(e)
	if got := e.Hooks[0].Env; !slices.Equal(got, []string{cdi.HookEnv}) {
		t.Errorf("a hook without an environment has %q", got)
	}
	if got := e.Hooks[1].Env; !slices.Equal(got, []string{"A=1"}) {
		t.Errorf("a hook with an environment has %q", got)
	}
	if bare.Env != nil {
		t.Error("the spec's own hook was changed")
	}
}
