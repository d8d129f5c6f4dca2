package cli

import (
	"encoding/json"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// resultFlag is the flag of berth run and berth wait that names a file for the result.
const resultFlag = "result"

// maxResult bounds what is read to know a result by, in bytes.
const maxResult = 16 << 20

// dropOldResult removes the result of a run before, where the command line of this one was refused before its own could
// be written: nobody is to take it for this one's. What is no result of berth's stays: where a command line is wrong it is
// not sure what names a file.
func (a *app) dropOldResult(cmd *cobra.Command, args []string) {
	if cmd == nil || a.called || cmd.Flags().Lookup(resultFlag) == nil {
		return
	}
	name := namedResult(cmd, args)
	if name == "" {
		_ = a.configure(cmd) // sets what can be read of the settings; what is wrong with the rest is told
		name = cmd.Flags().Lookup(resultFlag).Value.String()
	}
	if path := a.abs(name); name != "" && isResult(path) {
		_ = os.Remove(path) // the command has failed as it is
	}
}

// isResult reports whether a file holds what writeResult writes.
func isResult(path string) bool {
	if st, err := os.Lstat(path); err != nil || !st.Mode().IsRegular() {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	var is struct {
		ID, State *string
		Code      *int `json:"berth_exit_code"`
	}
	err = json.NewDecoder(io.LimitReader(f, maxResult)).Decode(&is)
	return err == nil && is.ID != nil && is.State != nil && is.Code != nil
}

// namedResult is the value of --result in the arguments of a command that cannot be read. Flags end where the command's
// do; what follows a flag that there is not is taken for its value, if it is no flag.
func namedResult(cmd *cobra.Command, args []string) (name string) {
	begin := slices.Index(args, cmd.Name()) + 1
	for i := begin; i < len(args) && args[i] != "--"; i++ {
		if !strings.HasPrefix(args[i], "-") || args[i] == "-" {
			if cmd.Annotations[ownExit] != "" {
				break // IMAGE: what follows is its own
			}
			continue
		}
		flag, value, whole := strings.Cut(args[i], "=")
		f := lookupFlag(cmd, flag)
		next := i+1 < len(args) && !strings.HasPrefix(args[i+1], "-")
		if takes := f != nil && f.NoOptDefVal == "" || f == nil && next; !whole && takes && i+1 < len(args) {
			i++
			value = args[i]
		}
		if f != nil && f.Name == resultFlag {
			name = value
		}
	}
	return name
}

// lookupFlag finds a flag by --name, or by -n where nothing is written after it.
func lookupFlag(cmd *cobra.Command, arg string) *pflag.Flag {
	if name, long := strings.CutPrefix(arg, "--"); long {
		return cmd.Flags().Lookup(name)
	}
	if len(arg) != 2 {
		return &pflag.Flag{NoOptDefVal: "in it"} // its value is in it, or it is several without
	}
	return cmd.Flags().ShorthandLookup(arg[1:])
}
