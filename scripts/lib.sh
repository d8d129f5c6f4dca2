# Sourced by quickstart, test and bench: what they share. Needs bash.

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# as_root CMD...: runs a command as root, by sudo where need be.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "This needs root once, to run: $*
Run it as root, or install sudo, and start again."
	fi
}

# need PACKAGE:PROBE...: installs Debian packages whose probe (a command, or a path with a slash) is not there.
need() {
	local missing=() item probe
	for item; do
		probe=${item#*:}
		case $probe in
		*/*) [ -e "$probe" ] || missing+=("${item%%:*}") ;;
		*) PATH=$PATH:/usr/sbin:/sbin command -v "$probe" >/dev/null || missing+=("${item%%:*}") ;;
		esac
	done
	[ ${#missing[@]} = 0 ] && return
	command -v apt-get >/dev/null ||
		die "This system has no apt-get. Missing, by Debian's names: ${missing[*]}
Install them with your system's package manager and start again."
	say "Installing with apt: ${missing[*]}"
	# Another apt may be at work, as on a machine that has just started: wait for it.
	local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600) failed=0
	as_root "${apt[@]}" update >/dev/null || say "apt-get update had errors; trying to go on"
	# Services must not start by being installed: tests start their own.
	local policy=""
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		policy=1
		printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
		as_root chmod 755 /usr/sbin/policy-rc.d
	fi
	as_root "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >&2 || failed=$?
	[ -z "$policy" ] || as_root rm -f /usr/sbin/policy-rc.d
	[ $failed = 0 ] || die "apt-get could not install: ${missing[*]}"
}

# need_go: finds Go of at least the version that go.mod names.
need_go() {
	command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
	command -v go >/dev/null ||
		die "Go is missing. Get it from https://go.dev/dl/ (or: apt-get install golang-go), version $(awk '$1=="go"{print $2}' go.mod) or newer; older ones from 1.21 on fetch it themselves."
}
