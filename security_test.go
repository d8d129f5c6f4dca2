package berth_test

import (
	"errors"
	"testing"

	"github.com/berth-project/berth"
)

func TestSecurityOptions(t *testing.T) {
	labels := func(o ...string) error { return berth.CheckSELinux(o) }
	for name, row := range map[string]struct {
		err error
		ok  bool
	}{
		"no profile":               {berth.CheckAppArmor(""), true},
		"unconfined":               {berth.CheckAppArmor(berth.Unconfined), true},
		"profile of a program":     {berth.CheckAppArmor("/usr/bin/man//groff"), true},
		"two words":                {berth.CheckAppArmor("a b"), false},
		"profile with a zero byte": {berth.CheckAppArmor("a\x00"), false},
		"no labels":                {labels(), true},
		"disabled":                 {labels("disable"), true},
		"whole label":              {labels("user:system_u", "role:system_r", "type:container_t", "level:s0:c1,c2", "filetype:container_file_t"), true},
		"disabled, and more":       {labels("type:container_t", "disable"), false},
		"type twice":               {labels("type:a", "type:b"), false},
		"no value":                 {labels("type:"), false},
		"no key":                   {labels("container_t"), false},
		"unknown key":              {labels("typ:container_t"), false},
		"value with a space":       {labels("level:s0 c1"), false},
		"no parent":                {berth.CheckCgroupParent(""), true},
		"path":                     {berth.CheckCgroupParent("/batch/job 7"), true},
		"root":                     {berth.CheckCgroupParent("/"), false},
		"slice":                    {berth.CheckCgroupParent("batch-job7.slice"), true},
		"path of a slice":          {berth.CheckCgroupParent("/batch.slice"), true},
		"relative path":            {berth.CheckCgroupParent("batch/job7"), false},
		"relative path of a slice": {berth.CheckCgroupParent("batch/a.slice"), false},
		"slice of nothing":         {berth.CheckCgroupParent(".slice"), false},
		"slice of a gap":           {berth.CheckCgroupParent("a--b.slice"), false},
		"path that leads upward":   {berth.CheckCgroupParent("/batch/../x"), false},
		"path that is not clean":   {berth.CheckCgroupParent("/batch/"), false},
		"path of two lines":        {berth.CheckCgroupParent("/a\nb"), false},
	} {
		if row.ok != (row.err == nil) || !row.ok && !errors.Is(row.err, berth.ErrInvalid) {
			t.Errorf("%s: %v", name, row.err)
		}
	}
}
