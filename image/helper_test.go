package image

import (
	"io"
	"log"
	"reflect"
	"testing"
)

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

// equal compares whole values.
func equal(t testing.TB, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
