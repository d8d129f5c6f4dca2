package cli

import (
	"bufio"
	"bytes"
	"slices"
	"strings"
)

// environment is what --env-file and --env say, in that order.
func (a *app) environment(o *runOptions) ([]string, error) {
	var env []string
	for _, name := range o.envFile {
		data, err := readFile(a.abs(name), 16<<20)
		if err != nil {
			return nil, invalid("run: --env-file: %v", err)
		}
		lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))))
		lines.Buffer(nil, 16<<20)
		for n := 1; lines.Scan(); n++ {
			line := strings.TrimLeft(strings.TrimSuffix(lines.Text(), "\r"), " \t")
			if line == "" || line[0] == '#' {
				continue
			}
			key, _, _ := strings.Cut(line, "=")
			if key == "" || strings.ContainsAny(key, " \t") {
				return nil, invalid("run: --env-file: %s:%d: %q is no variable: write K=V", name, n, line)
			}
			env = a.appendEnv(env, line)
		}
		if err := lines.Err(); err != nil {
			return nil, invalid("run: --env-file: %s: %v", name, err)
		}
	}
	for _, e := range o.env {
		if e == "" || e[0] == '=' {
			return nil, invalid("run: --env: %q is no variable: write K=V", e)
		}
		env = a.appendEnv(env, e)
	}
	return env, nil
}

// appendEnv appends K=V; K alone takes the host's value, and is nothing where the host has none.
func (a *app) appendEnv(env []string, e string) []string {
	if strings.Contains(e, "=") {
		return append(env, e)
	}
	if v, ok := a.lookupEnv(e); ok {
		return append(env, e+"="+v)
	}
	return env
}

// mergeEnv lets later values win and sorts by name, as documents do.
func mergeEnv(env, more []string) []string {
	values := map[string]string{}
	for _, e := range slices.Concat(env, more) {
		k, _, _ := strings.Cut(e, "=")
		values[k] = e
	}
	var merged []string
	for _, e := range values {
		merged = append(merged, e)
	}
	slices.Sort(merged)
	return merged
}
