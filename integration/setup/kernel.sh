#!/bin/bash
# Fetches Debian's stock kernel as a package, without installing it, and unpacks
# it: the guest kernel of the tests and the demo, whatever is in /boot.
#   kernel.sh DIRECTORY [SUITE]    SUITE: e.g. bookworm-backports
set -euo pipefail
. "$(dirname "$0")/apt.sh"
PATH=$PATH:/usr/sbin:/sbin

out=$1
suite=${2:-}
if compgen -G "$out/boot/vmlinuz-*" >/dev/null && compgen -G "$out/lib/modules/*/modules.dep" >/dev/null; then
	exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
chown _apt "$work" 2>/dev/null || : # apt downloads as a user of its own

options=()
if [ -n "$suite" ]; then
	mkdir -p "$work/lists/partial"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" >"$work/sources.list"
	options=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
	mkdir -p "$work/cache/archives/partial"
	apt_get "${options[@]}" -q update >&2
else
	if ! apt-cache show linux-image-amd64 >/dev/null 2>&1; then
		apt_get -q update >&2
	fi
fi

download() {
	# linux-image-amd64 is only a name; the kernel is the package it depends on.
	package=$(apt-cache "${options[@]}" depends linux-image-amd64 | awk '/Depends: linux-image-[0-9]/ {print $2; exit}')
	[ -n "$package" ] || { echo "no linux-image-amd64 in the package lists" >&2; return 1; }
	echo "fetching $package (about 70 MB, not installed)"
	(cd "$work" && apt_get "${options[@]}" -q download "$package")
}
if ! download; then
	apt_get "${options[@]}" -q update >&2 # lists that are days old name packages that are gone
	download
fi
mkdir "$work/tree"
dpkg-deb -x "$work"/linux-image-*.deb "$work/tree"
# Since Debian 13 the modules are packaged in /usr/lib, where /lib leads on an installed system.
[ -e "$work/tree/lib" ] || ln -s usr/lib "$work/tree/lib"
for modules in "$work"/tree/lib/modules/*; do
	depmod -b "$work/tree" "$(basename "$modules")"
done
mkdir -p "$(dirname "$out")"
rm -rf "$out" # a half-unpacked earlier try; plain files only
mv "$work/tree" "$out"
echo "guest kernel: $(ls "$out"/boot/vmlinuz-*)"
