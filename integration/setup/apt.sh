# Sourced by the other scripts: apt-get that waits for its turn.

# apt_get runs apt-get and tries again while another apt holds a lock (a fresh
# machine's own updates do, for its first minutes) or the network hiccups.
apt_get() {
	local try
	for try in 1 2 3 4 5; do
		if DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 "$@"; then
			return 0
		fi
		echo "apt-get $1 failed (try $try of 5)" >&2
		[ "$try" = 5 ] || sleep $((try * 4))
	done
	return 1
}

# apt_lists downloads the package lists where there are none.
apt_lists() {
	if ! apt-cache show busybox-static >/dev/null 2>&1; then
		apt_get -q update >&2
	fi
}

need_root() {
	if [ "$(id -u)" != 0 ]; then
		echo "$1 needs root: run it with sudo" >&2
		exit 1
	fi
}
