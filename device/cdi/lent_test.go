package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCacheVanished: a file that goes between the look at its directory and at itself is none; a link that leads nowhere is a problem.
func TestCacheVanished(t *testing.T) {
	host := testHost(t, map[string]string{"etc/cdi/a.yaml": oneGPU, "etc/cdi/b.yaml": strings.Replace(oneGPU, `"0"`, `"1"`, 1), "etc/cdi/c.yaml": "-> nowhere"}, nil)
	c := NewCache(host).Without(func(path string) bool {
		if path == "/etc/cdi/b.yaml" {
			_ = os.Remove(filepath.Join(host.Root, path))
		}
		return false
	})
	problems := c.Problems()
	if len(problems) != 1 || problems[0].Path != "/etc/cdi/c.yaml" {
		t.Errorf("problems %v, want one, of /etc/cdi/c.yaml", problems)
	}
	if got := c.Devices(); !slices.Equal(got, []string{"acme.com/gpu=0"}) {
		t.Errorf("devices %v", got)
	}
}

func TestCacheWithoutLent(t *testing.T) {
	name := LentName("me", "sandbox-1", "nvidia")
	host := testHost(t, map[string]string{"etc/cdi/a.yaml": oneGPU, "var/run/cdi/" + name + ".yaml": "bad", "var/run/cdi/berth.yaml": "bad"}, nil)
	if got := NewCache(host).Problems(); len(got) != 2 {
		t.Errorf("problems %v, want two", got)
	}
	if got := NewCache(host).Without(IsLent).Problems(); len(got) != 1 || got[0].Path != "/var/run/cdi/berth.yaml" {
		t.Errorf("problems %v, want one, of /var/run/cdi/berth.yaml", got)
	}
}
