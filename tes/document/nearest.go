package document

import "strings"

// Nearest returns the candidate that is most like word, for a suggestion; "" if none is like it.
func Nearest(word string, candidates []string) string {
	if len(word) > 64 {
		return ""
	}
	best, bound, changes := "", 1+max(1, len(word)/3), 0
	for _, c := range candidates {
		letters := distance(word, c)
		d := letters
		if len(word) >= 3 && (strings.HasPrefix(c, word) || strings.HasPrefix(word, c)) {
			d = min(d, 1) // shortened, or drawn out
		}
		if d < bound || d == bound && best != "" && letters < changes {
			best, bound, changes = c, d, letters
		}
	}
	return best
}

// Within returns the candidate that the fewest changes, and at most most, make of word; "" if there is none.
func Within(word string, candidates []string, most int) string {
	best := ""
	for _, c := range candidates {
		if max(len(word)-len(c), len(c)-len(word)) > most {
			continue
		}
		if d := distance(word, c); d <= most {
			best, most = c, d-1
		}
	}
	return best
}

// DidYouMean writes the suggestion that follows an error about word: ` (did you mean "x"?)`, or nothing.
func DidYouMean(word string, candidates []string) string {
	if near := Nearest(word, candidates); near != "" {
		return ` (did you mean "` + near + `"?)`
	}
	return ""
}

// distance is how many letters must be put in, left out, changed, or swapped with the next, to make a of b.
func distance(a, b string) int {
	two, one, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range one {
		one[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := one[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(change, one[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], two[j-2]+1)
			}
		}
		two, one, row = one, row, two
	}
	return one[len(b)]
}
