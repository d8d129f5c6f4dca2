package berth

import (
	"crypto/rand"
	"fmt"
	"strings"
)

const idMax = 40

// NewID returns a random task ID: 16 characters of [a-z2-7], 80 bits.
func NewID() string {
	return strings.ToLower(rand.Text()[:16])
}

// CheckID reports whether id can name a task, a sandbox or a step: [a-z0-9-]{1,40}, not beginning with a
// hyphen. The error wraps ErrInvalid.
func CheckID(id string) error {
	if id == "" || len(id) > idMax || id[0] == '-' {
		return fmt.Errorf("id %q: %w: an id has 1 to %d characters of a-z, 0-9 and -, and begins with none of -", id, ErrInvalid, idMax)
	}
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("id %q: %w: %q at offset %d; an id has only a-z, 0-9 and -", id, ErrInvalid, c, i)
		}
	}
	return nil
}
