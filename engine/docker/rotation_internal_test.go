package docker

import (
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestLogLacksItsMark: a log, small as it is, that has no more what was read of it last is asked for whole, once, and goes on with a mark.
func TestLogLacksItsMark(t *testing.T) {
	t.Parallel()
	at := time.Now().Add(-time.Minute).UTC()
	message := func(after time.Duration, text string) string {
		return frame(1, at.Add(after).Format(time.RFC3339Nano)+" "+text+"\n")
	}
	var asked atomic.Int64
	l := fakeDaemon(t, func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 1 {
			_, _ = io.WriteString(w, message(0, "one"))
			return
		}
		_, _ = io.WriteString(w, message(time.Second, "two"))
	})
	l.e.host = &hostInfo{mend: true}
	o := &output{l: l, out: newSink(t, "stdout", ""), err: newSink(t, "stderr", "")}
	for range 2 {
		if err := o.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	path := o.out.w.Path()
	if gaps := o.out.gaps; !slices.Equal(gaps, []int64{4}) || asked.Load() != 3 {
		t.Errorf("gaps %v, after %d questions", gaps, asked.Load())
	}
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(got), "one\ntwo\n") {
		t.Errorf("it has %q, %v", got, err)
	}
}
