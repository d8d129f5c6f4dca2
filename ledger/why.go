package ledger

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"
)

// who names the tasks of es and their users, the first three of them.
func who(es []*Entry) string {
	const named = 3
	var b strings.Builder
	for i, e := range es {
		if i == named {
			fmt.Fprintf(&b, " and %d more", len(es)-named)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(e.who())
	}
	return b.String()
}

func (e *Entry) who() string { return e.Task + " (" + userName(e.Owner) + ")" }

func userName(uid uint32) string {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return fmt.Sprintf("uid %d", uid)
	}
	return "user " + u.Username
}

// plural is "1 task is" or "n tasks are".
func tasksAre(n int) string {
	if n == 1 {
		return "1 task is"
	}
	return fmt.Sprintf("%d tasks are", n)
}

func cpus(n float64) string {
	if n == 1 {
		return "1 CPU"
	}
	return number(n) + " CPUs"
}

func verb(s string, singular bool) string {
	if singular {
		return s + " is"
	}
	return s + " are"
}
