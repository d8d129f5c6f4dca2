package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/berth-project/berth/tes/document"
)

// settings are values for flags from outside the command line, by the flag's key: "data_dir", "run.memory".
// A key is the path of the command, without berth, and the flag's name with underscores.
type settings map[string]setting

type setting struct {
	values []string
	where  string // for errors: "config.yaml:3:5: run.memory", "BERTH_RUN_MEMORY"
}

// unset are the flags that have no setting: they say what one call does.
var unset = []string{"help", "version", "config", "dry-run", "file"}

// places are the flags that say where something is, and mean a default, or nothing at all, where they are empty.
var places = []string{
	"data-dir", "config", "docker-host", "gpu-root", "broken-hook", "root", "file", "stdin", "stdout", "stderr", "result", "cgroup-parent", "bundle", "hook", "output",
}

// refuseEmpty refuses such a flag if the command line gives it empty: mostly by a variable of the shell that is not set.
func refuseEmpty(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if err == nil && f.Value.Type() == "string" && f.Value.String() == "" && slices.Contains(places, f.Name) {
			kind, _ := pflag.UnquoteUsage(f)
			err = usageError(cmd, "--%s is empty: write --%s %s, or leave it out; is a variable of the shell not set?", f.Name, f.Name, kind)
		}
	})
	return err
}

// configure sets the flags of a command that the command line does not: from the environment, else from the
// user's configuration file (--config, or $XDG_CONFIG_HOME/berth/config.yaml), else from /etc/berth/config.yaml.
func (a *app) configure(cmd *cobra.Command) error {
	if err := refuseEmpty(cmd); err != nil {
		return err
	}
	known := knownSettings(cmd.Root())
	all := settings{}
	for _, read := range []func(settings, map[string]*pflag.Flag) error{a.readFiles, a.readEnv} {
		if err := read(all, known); err != nil {
			return err
		}
	}
	var err error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || err != nil {
			return
		}
		s, ok := all[settingKey(cmd, f)]
		if !ok || known[settingKey(cmd, f)] == nil {
			return
		}
		for _, v := range s.values {
			// Not FlagSet.Set: what comes from outside does not count as given on the command line.
			if bad := f.Value.Set(v); bad != nil && err == nil {
				err = valueError(s.where, v, bad)
			}
		}
	})
	return err
}

// settingKey is the key of a flag, as met at a command.
func settingKey(cmd *cobra.Command, f *pflag.Flag) string {
	name := strings.ReplaceAll(f.Name, "-", "_")
	if cmd.Root().PersistentFlags().Lookup(f.Name) == f {
		return name
	}
	path := strings.Fields(cmd.CommandPath())[1:]
	return strings.Join(append(path, name), ".")
}

// knownSettings are the keys of all flags of all commands.
func knownSettings(root *cobra.Command) map[string]*pflag.Flag {
	known := map[string]*pflag.Flag{}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		add := func(f *pflag.Flag) {
			if !f.Hidden && !slices.Contains(unset, f.Name) {
				known[settingKey(cmd, f)] = f
			}
		}
		cmd.LocalFlags().VisitAll(add)
		for _, c := range cmd.Commands() {
			if !c.Hidden {
				walk(c)
			}
		}
	}
	walk(root)
	return known
}

// readEnv reads BERTH_* variables: BERTH_DATA_DIR, BERTH_RUN_MEMORY. The values of a list stand on lines of
// their own; an empty value is none. A name that berth does not know is refused where it looks misspelt, and else not berth's: other
// programs, such as Kubernetes for a service of that name, make variables that begin so.
func (a *app) readEnv(all settings, known map[string]*pflag.Flag) error {
	names := map[string]string{}
	for key := range known {
		names["BERTH_"+strings.ToUpper(strings.ReplaceAll(key, ".", "_"))] = key
	}
	for _, e := range a.env {
		name, value, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "BERTH_") || name == "BERTH_CONFIG" || value == "" {
			continue
		}
		key, ok := names[name]
		if !ok {
			if near := nearestVariable(name, names); near != "" {
				return invalid("the variable %s means nothing to berth (did you mean %s?)", name, near)
			}
			continue
		}
		s := setting{values: []string{value}, where: name}
		if _, list := known[key].Value.(listValue); list {
			s.values = strings.Split(strings.TrimSuffix(value, "\n"), "\n")
		}
		all[key] = s
	}
	return nil
}

func nearestVariable(name string, names map[string]string) string {
	candidates := []string{"BERTH_CONFIG"}
	for n := range names {
		candidates = append(candidates, n)
	}
	slices.Sort(candidates)
	return document.Within(name, candidates, 2)
}

// readFiles reads the configuration files, the user's over the machine's.
func (a *app) readFiles(all settings, known map[string]*pflag.Flag) error {
	user, explicit := a.global.config, true
	if user == "" {
		user, explicit = a.lookupEnv("BERTH_CONFIG")
	}
	if user == "" {
		explicit = false
		if dir := a.getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
			user = filepath.Join(dir, "berth", "config.yaml")
		} else if home := a.getenv("HOME"); filepath.IsAbs(home) {
			user = filepath.Join(home, ".config", "berth", "config.yaml")
		}
	}
	for _, f := range []struct {
		path string
		must bool
	}{{"/etc/berth/config.yaml", false}, {user, explicit}} {
		if f.path == "" {
			continue
		}
		data, err := os.ReadFile(f.path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !f.must, errors.Is(err, fs.ErrPermission) && !f.must:
			continue
		case err != nil:
			return invalid("read configuration: %v", err)
		}
		if err := readConfig(f.path, data, all, known); err != nil {
			return err
		}
	}
	return nil
}

// readConfig reads a configuration file: flags as keys, those of a command in a map with the command's name.
func readConfig(name string, data []byte, all settings, known map[string]*pflag.Flag) error {
	if strings.TrimSpace(string(data)) == "" {
		return nil
	}
	root, err := document.Parse(name, data, document.FormatOf(name, data))
	if err != nil {
		return err
	}
	return readSettings(name, "", root, all, known)
}

func readSettings(name, prefix string, n *document.Node, all settings, known map[string]*pflag.Flag) error {
	fault := func(line, col int, path, format string, args ...any) error {
		return &document.Error{Name: name, Line: line, Col: col, Path: path, Message: fmt.Sprintf(format, args...)}
	}
	if n.Kind != document.Map {
		return fault(n.Line, n.Col, strings.TrimSuffix(prefix, "."), "it is %s, and must be a map", n.Kind)
	}
	for _, f := range n.Fields {
		path := prefix + f.Key
		key := strings.ReplaceAll(path, "-", "_")
		flag := known[key]
		if flag == nil {
			if below := keysBelow(known, key); len(below) > 0 {
				if err := readSettings(name, path+".", f.Value, all, known); err != nil {
					return err
				}
				continue
			}
			return fault(f.Line, f.Col, path, "there is no such key%s", document.DidYouMean(f.Key, siblings(known, prefix)))
		}
		s := setting{where: fmt.Sprintf("%s:%d:%d: %s", name, f.Value.Line, f.Value.Col, path)}
		_, list := flag.Value.(listValue)
		switch {
		case f.Value.Kind == document.Null:
			continue
		case f.Value.Kind == document.Map, f.Value.Kind == document.List && !list:
			return fault(f.Value.Line, f.Value.Col, path, "it is %s, and must be one value", f.Value.Kind)
		case f.Value.Kind == document.List:
			for _, item := range f.Value.Items {
				if item.Kind == document.Map || item.Kind == document.List || item.Kind == document.Null {
					return fault(item.Line, item.Col, path, "it is %s, and must be one value", item.Kind)
				}
				s.values = append(s.values, item.Text)
			}
		default:
			s.values = []string{f.Value.Text}
		}
		all[key] = s
	}
	return nil
}

// keysBelow are the known keys that begin with a command's key.
func keysBelow(known map[string]*pflag.Flag, command string) []string {
	var keys []string
	for k := range known {
		if strings.HasPrefix(k, command+".") {
			keys = append(keys, k)
		}
	}
	return keys
}

// siblings are what may stand beside a key with the prefix.
func siblings(known map[string]*pflag.Flag, prefix string) []string {
	var names []string
	for k := range known {
		if rest, ok := strings.CutPrefix(k, strings.ReplaceAll(prefix, "-", "_")); ok {
			name, _, _ := strings.Cut(rest, ".")
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
