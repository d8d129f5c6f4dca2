package docker

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
)

// frame is one frame of a multiplexed stream.
func frame(stream byte, s string) string {
	var h [frameHeader]byte
	h[0] = stream
	binary.BigEndian.PutUint32(h[4:], uint32(len(s)))
	return string(h[:]) + s
}

func TestDemux(t *testing.T) {
	big := strings.Repeat("x", 100_000)
	for _, c := range []struct{ name, in, out, err, fails string }{
		{"nothing", "", "", "", ""},
		{"both", frame(1, "out\n") + frame(2, "err\n") + frame(1, "more"), "out\nmore", "err\n", ""},
		{"an empty frame", frame(1, "") + frame(2, "e"), "", "e", ""},
		{"a frame beyond the buffer", frame(1, big), big, "", ""},
		{"standard input", frame(0, "x"), "", "", "unknown stream 0"},
		{"a stream that is none", frame(1, "a") + frame(4, "x"), "a", "", "unknown stream 4"},
		{"the daemon's word", frame(1, "a") + frame(3, "Error grabbing logs: no room\n") + frame(2, "b"), "a", "b", "the daemon says: no room"},
		{"the daemon's word, cut", frame(3, "no room")[:12], "", "", "unexpected EOF"},
		{"no frame", "GET / HTTP/1.1\r\n", "", "", "unknown stream 71"},
		{"bytes that are zero", "\x01\x00\x07\x00\x00\x00\x00\x01x", "", "", "frame header"},
		{"cut in the header", frame(1, "a") + "\x01\x00", "a", "", "unexpected EOF"},
		{"cut in the frame", frame(1, "abc")[:10], "ab", "", "unexpected EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			err := demux(strings.NewReader(c.in), &out, &errs)
			if out.String() != c.out || errs.String() != c.err {
				t.Errorf("stdout %.40q, stderr %.40q; want %.40q, %.40q", out.String(), errs.String(), c.out, c.err)
			}
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("error %v; want %q", err, c.fails)
			}
		})
	}
}

// FuzzDemux: what comes out is what frames held, in order, and never more than came in.
func FuzzDemux(f *testing.F) {
	f.Add([]byte(frame(1, "out")+frame(2, "err")), 3)
	f.Add([]byte("\x01\x00\x00\x00\xff\xff\xff\xffx"), 1)
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		var out, errs, whole, wholeErrs bytes.Buffer
		err := demux(bytes.NewReader(in), &whole, &wholeErrs)
		again := demux(&slowly{in, max(1, step%64)}, &out, &errs)
		if !bytes.Equal(out.Bytes(), whole.Bytes()) || !bytes.Equal(errs.Bytes(), wholeErrs.Bytes()) || (err == nil) != (again == nil) {
			t.Errorf("in pieces of %d: %q, %q, %v; at once: %q, %q, %v", step, &out, &errs, again, &whole, &wholeErrs, err)
		}
		if whole.Len()+wholeErrs.Len() > len(in) {
			t.Errorf("%d bytes of %d", whole.Len()+wholeErrs.Len(), len(in))
		}
	})
}

// slowly reads a few bytes at a time.
type slowly struct {
	rest []byte
	n    int
}

func (s *slowly) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.rest[:min(s.n, len(s.rest))])
	s.rest = s.rest[n:]
	return n, nil
}

// TestMender: what a daemon makes of lines, and what they were.
func TestMender(t *testing.T) {
	part := strings.Repeat("x", logMessageMax)
	for _, c := range []struct {
		name     string
		messages []string
		off      bool
		want     string
	}{
		{"lines", []string{"a\n", "\n", "b\n"}, false, "a\n\nb\n"},
		{"an unfinished line", []string{"a\n", "b"}, false, "a\nb"},
		{"a line of two parts", []string{part, "y", "z\n"}, false, part + "y\nz\n"},
		{"a line of one whole part", []string{part, "", "z\n"}, false, part + "\nz\n"},
		{"a line of many parts", []string{part, part, "y", part, "y"}, false, part + part + "y\n" + part + "y\n"},
		{"a daemon that leaves nothing out", []string{part, "y\n", "z\n"}, false, part + "y\nz\n"},
		{"one whose last part is unfinished", []string{part, "y"}, true, part + "y"},
		{"cut at the end of a part", []string{part}, false, part},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			m := &mender{w: &out, off: c.off}
			for _, text := range c.messages {
				if _, err := m.Write([]byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.flush(); err != nil {
				t.Fatal(err)
			}
			if out.String() != c.want {
				t.Errorf("%d bytes, which are not the %d of the lines", out.Len(), len(c.want))
			}
		})
	}
}

// TestStartWords: of a command that is not there, or cannot be run, a daemon is told in berth's own words.
func TestStartWords(t *testing.T) {
	const oci = "OCI runtime exec failed: exec failed: unable to start container process: "
	for msg, want := range map[string]string{
		oci + `exec: "none": executable file not found in $PATH: unknown`:                                                                        "exec none: no such file or directory",
		oci + `exec: "none": stat /no/such: no such file or directory: unknown`:                                                                  "exec none: no such file or directory",
		oci + `exec: "none": permission denied: unknown`:                                                                                         "exec none: permission denied",
		oci + `exec: "none": is a directory: unknown`:                                                                                            "exec none: permission denied",
		oci + `exec: "none": stat none: not a directory: unknown: Are you trying to mount`:                                                       "exec none: not a directory",
		oci + `exec none: exec format error: unknown`:                                                                                            "exec none: exec format error",
		"Error: crun: executable file `none` not found: No such file or directory: OCI runtime attempted to invoke a command that was not found": "exec none: no such file or directory",
		"Error: crun: open executable: Permission denied: OCI permission denied":                                                                 "exec none: permission denied",
		oci + `chdir to cwd ("/nothere") set in config.json failed: no such file or directory: unknown`:                                          "working directory /nothere: no such file or directory",
		"Error: crun: open executable: Operation not permitted: OCI permission denied":                                                           "exec none: permission denied",
		"Error: crun: open executable: Not a directory: OCI runtime error":                                                                       "exec none: not a directory",
		"Error: crun: open executable: Too many levels of symbolic links: OCI runtime error":                                                     "exec none: too many levels of symbolic links",
		oci + `exec: "none": stat none: too many levels of symbolic links: unknown`:                                                              "exec none: too many levels of symbolic links",
		"Error: crun: open executable: Input/output error: OCI runtime error":                                                                    "Error: crun: open executable: Input/output error: OCI runtime error",
		"Error: crun: chdir `/nothere`: No such file or directory: OCI runtime attempted to invoke a command that was not found":                 "working directory /nothere: no such file or directory",
		oci + `something else: unknown`:                                                                                                          oci + `something else: unknown`,
	} {
		if got := startWords([]string{"none", "x"}, msg); got != want {
			t.Errorf("startWords(%q) = %q, want %q", msg, got, want)
		}
	}
}

func TestStartCode(t *testing.T) {
	const oci = "OCI runtime create failed: runc create failed: unable to start container process: "
	for msg, want := range map[string]int{
		oci + `exec: "none": executable file not found in $PATH: unknown`:                                            127,
		oci + `exec: "/no/such": stat /no/such: no such file or directory: unknown`:                                  127,
		oci + `exec: "/etc/passwd": permission denied: unknown`:                                                      126,
		oci + `exec: "/etc/passwd/x": stat /etc/passwd/x: not a directory: unknown`:                                  126,
		oci + `exec /bin/x: exec format error: unknown`:                                                              126,
		"crun: open executable: Permission denied: OCI permission denied":                                            126,
		"crun: open executable: Too many levels of symbolic links: OCI runtime error":                                126,
		"crun: open executable: Input/output error: OCI runtime error":                                               0,
		"crun: open executable: Cannot allocate memory: OCI runtime error":                                           0,
		"crun: open executable: Too many open files: OCI runtime error: permission denied":                           0,
		oci + `error mounting "/a" to rootfs at "/b": no such file or directory: unknown`:                            0,
		`bind source path does not exist: /x`:                                                                        0,
		oci + `open /proc/sys/vm/none: permission denied: unknown`:                                                   0,
		oci + `unable to find user nobody-here: no matching entries in passwd file`:                                  0,
		`driver failed programming external connectivity on endpoint x: listen tcp 0.0.0.0:80: address already used`: 0,
	} {
		if got := startCode(msg); got != want {
			t.Errorf("startCode(%q) = %d, want %d", msg, got, want)
		}
	}
}
