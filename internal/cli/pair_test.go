package cli

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/berth-project/berth"
)

func TestParsePair(t *testing.T) {
	none := map[string]string{}
	for in, want := range map[string]pair{
		"a:/b":                             {"a", "/b", none},
		"/a:/b":                            {"/a", "/b", none},
		"a:b:/c":                           {"a:b", "/c", none},
		"C:/x:/c":                          {"C:/x", "/c", none},
		"https://h/x:/c":                   {"https://h/x", "/c", none},
		"http://h:80/x:/c/d":               {"http://h:80/x", "/c/d", none},
		"file:///a:/b":                     {"file:///a", "/b", none},
		"a:/b:ro":                          {"a", "/b", map[string]string{"ro": "true"}},
		"a:/b:/c:ro":                       {"a:/b", "/c", map[string]string{"ro": "true"}},
		"a,b=c:/d":                         {"a,b=c", "/d", none},
		"src=a,dst=/b":                     {"a", "/b", none},
		"dst=/b,src=a":                     {"a", "/b", none},
		"source=a,target=/b,ro":            {"a", "/b", map[string]string{"ro": "true"}},
		"src=a,dst=/b,ro=false":            {"a", "/b", map[string]string{"ro": "false"}},
		"src=a,b:c,dst=/b:c":               {"a,b:c", "/b:c", none},
		"src=a,x=y,dst=/b":                 {"a,x=y", "/b", none},
		`src="a,dst=b",dst=/c`:             {"a,dst=b", "/c", none},
		`src=",ro",dst="/c",ro`:            {",ro", "/c", map[string]string{"ro": "true"}},
		"url=http://h/x,path=/b,type=file": {"http://h/x", "/b", map[string]string{"type": "file"}},
		"src=a,dst=/b,ro,":                 {"a", "/b", map[string]string{"ro": "true"}},
	} {
		if got, err := parsePair(in, "ro!", "type"); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", in, got, err, want)
		}
	}
}

func TestParsePairRefuses(t *testing.T) {
	for in, says := range map[string]string{
		"":                    "no colon",
		"a":                   "no colon",
		"a:b":                 "no colon",
		"/a":                  "no colon",
		"http://h/x":          "no colon",
		"a://b":               "no colon",
		":/b":                 "nothing before the colon",
		"/a:/b:rwx":           `":rwx" after the container path`,
		"/a:/b:RO":            `":RO" after the container path`,
		"/a:/b:ro,z":          `":ro,z" after the container path`,
		"src=a,dst=/b,src=c":  "src is given twice",
		"src=a,source=b":      "source is given twice",
		"src=a,dst=/b,ro=may": `ro is true or false, not "may"`,
		"dst":                 "no colon",
	} {
		_, err := parsePair(in, "ro!", "type")
		if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want an ErrInvalid that says %q", in, err, says)
		}
	}
}

func FuzzParsePair(f *testing.F) {
	for _, s := range []string{"a:/b:ro", "src=a,dst=/b,ro", `src="a,b",dst=/c`, "http://h:/x:/y", "src=,,dst=/x,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePair(s, "ro!", "type")
		if err != nil {
			if !errors.Is(err, berth.ErrInvalid) {
				t.Fatalf("%v has no kind", err)
			}
			return
		}
		if !isLong(s) {
			again := p.src + ":" + p.dst
			if p.on("ro") {
				again += ":ro"
			}
			if again != s {
				t.Fatalf("%q was read as %+v", s, p)
			}
		}
	})
}
