#!/bin/bash
# Installs the Debian packages husk is built, run and tested with, only those
# that are missing, and says why each is wanted.
#   deps.sh [run|test|bats|engines|build-runc|software|bench|proto]...    default: run
set -euo pipefail
. "$(dirname "$0")/apt.sh"

# package | what it is for, and how to see that it is there
wanted() {
	case $1 in
	run) cat <<-'LIST'
		qemu-system-x86|qemu-system-x86_64|the virtual machine monitor husk runs containers in
		busybox-static|busybox|the root file system of the demo and of the tests
		kmod|depmod|the module dependency list of the guest kernel
		procps|ps|husk ps
		iproute2|ip|looking at the network of the tests
		ca-certificates|/etc/ssl/certs/ca-certificates.crt|Go modules come over https
	LIST
		;;
	test) cat <<-'LIST'
		runc|runc|the integration suite runs against it too, which keeps the tests honest
		util-linux|nsenter|entering a container's namespaces as engines do
		gcc|gcc|the race detector needs a linker for C
		libc6-dev|/usr/include/stdlib.h|as above
	LIST
		;;
	bats) cat <<-'LIST'
		bats|bats|runs runc's own suite
		jq|jq|the suite changes config.json with it
		gawk|gawk|the suite finds cgroups with it
		uidmap|newuidmap|the suite's user namespaces
		debootstrap|debootstrap|makes the suite's Debian root file system
		xz-utils|xz|packs it
		gcc|gcc|runc and some of the tests are in C
		libc6-dev|/usr/include/stdlib.h|as above
		libseccomp-dev|/usr/include/seccomp.h|runc's seccomp
		pkg-config|pkg-config|finds libseccomp
	LIST
		;;
	engines) cat <<-'LIST'
		docker.io|/usr/bin/docker|the engine most users have
		containerd|containerd|runs Docker's containers
		iptables|iptables|the engines' networks
		podman|podman|the engine without a daemon
		conmon|conmon|holds podman's containers
		netavark|/usr/lib/podman/netavark|podman's networks
		aardvark-dns|/usr/lib/podman/aardvark-dns|podman's resolver
		catatonit|/usr/libexec/podman/catatonit|podman's --init and pods
		tini|tini|docker's --init
	LIST
		;;
	build-runc) cat <<-'LIST'
		gcc|gcc|runc is partly in C
		libc6-dev|/usr/include/stdlib.h|as above
		libseccomp-dev|/usr/include/seccomp.h|runc's seccomp
		pkg-config|pkg-config|finds libseccomp
	LIST
		;;
	software) cat <<-'LIST'
		debootstrap|debootstrap|makes the Debian that the software is in
		curl|curl|asks the servers from outside
		git|git|looks at what a container has pushed
		python3-minimal|python3|serves a package repository
	LIST
		;;
	bench) echo 'crun|crun|a second runtime to compare with' ;;
	proto) echo 'protobuf-compiler|protoc|generating code from the .proto files' ;;
	*) echo "deps.sh: unknown set $1" >&2; exit 2 ;;
	esac
}

there() {
	case $1 in
	/*) [ -e "$1" ] ;;
	*) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
	esac
}

missing=()
for set in "${@:-run}"; do
	while IFS='|' read -r package proof reason; do
		if ! there "$proof"; then
			printf '  %-18s %s\n' "$package" "$reason"
			missing+=("$package")
		fi
	done < <(wanted "$set")
done
if [ ${#missing[@]} -gt 0 ]; then
	need_root "installing ${missing[*]}"
	echo "installing ${#missing[@]} Debian packages"
	apt_lists
	# No recommended packages: QEMU's bring a desktop's worth of libraries.
	apt_get install -q -y --no-install-recommends "${missing[@]}" || {
		# Lists that are days old name packages that are gone.
		apt_get -q update && apt_get install -q -y --no-install-recommends "${missing[@]}"
	}
fi

# Go: go.mod names the version; any Go since 1.21 fetches that one by itself
# through the module proxy. Debian 12's own is too old, its backports' is not.
go_works() { command -v go >/dev/null && go version 2>/dev/null | grep -Eq 'go1\.(2[1-9]|[3-9][0-9])'; }
if ! go_works && [ -x /usr/lib/go-1.23/bin/go ]; then
	PATH=/usr/lib/go-1.23/bin:$PATH
fi
if ! go_works; then
	. /etc/os-release
	echo "  golang-1.23-go     builds husk (from ${VERSION_CODENAME:-bookworm}-backports; it fetches the Go that go.mod names)"
	need_root "installing Go"
	# Package lists of our own, so that the machine's sources stay as they are.
	lists=$(mktemp -d)
	trap 'rm -rf "$lists"' EXIT
	chmod 755 "$lists"
	mkdir -p "$lists/lists/partial"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian ${VERSION_CODENAME:-bookworm}-backports main" >"$lists/backports.list"
	cat /etc/apt/sources.list >"$lists/sources.list" 2>/dev/null || :
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian ${VERSION_CODENAME:-bookworm} main" >>"$lists/sources.list"
	cat "$lists/backports.list" >>"$lists/sources.list"
	options=(-o "Dir::Etc::sourcelist=$lists/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$lists/lists")
	apt_get "${options[@]}" -q update
	apt_get "${options[@]}" install -q -y --no-install-recommends golang-1.23-go || {
		echo "could not install Go: install Go 1.21 or later from https://go.dev/dl and put it into PATH" >&2
		exit 1
	}
fi
echo "dependencies are there: $(qemu-system-x86_64 --version | head -1), $(go version)"
