package image

import (
	"context"
	"io"
	"log"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

// equal compares whole values.
func equal(t testing.TB, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func contextOf() context.Context { return context.Background() }

// waitFor waits for what another goroutine or process does.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("it did not happen within 5 s")
}

// holdBlob makes a registry answer requests for one blob only once release is closed.
func holdBlob(hexDigest string, release <-chan struct{}) func(http.ResponseWriter, *http.Request) bool {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, hexDigest) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
		return false
	}
}
