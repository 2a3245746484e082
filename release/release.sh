#!/bin/bash
# Makes a release of what is checked out: a tarball, a .deb, an .rpm, a list of what husk is
# made of (SBOM, CycloneDX) and the checksums of all. The same commit and Go give the same
# bytes: no file has another time than the commit's.
#   release.sh OUTPUT    in the environment: VERSION, NFPM, CYCLONEDX (packages for go run)
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "$1")
export VERSION NFPM CYCLONEDX SOURCE_DATE_EPOCH STAGE
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
umask 022
name=husk-$VERSION-linux-amd64
STAGE=$out/$name
rm -rf "$out"
mkdir -p "$STAGE"

cp husk LICENSE README.md CHANGELOG.md SECURITY.md "$STAGE"
go run -tags pages . "$STAGE"
gzip -9n "$STAGE/husk.8"
"$STAGE/husk" config sample >"$STAGE/config.toml.sample"
find "$STAGE" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
	--directory "$out" "$name" | gzip -9n >"$out/$name.tar.gz"
for packager in deb rpm; do
	go run "$NFPM" package --config release/nfpm.yaml --packager "$packager" --target "$out" >&2
done
# Of what the binary was linked with, not of all that go.mod lists; less the moment at which
# the list was made.
go run "$CYCLONEDX" bin -json -noserial -output "$out/sbom.json" husk 2>"$out/sbom.log" || {
	cat "$out/sbom.log" >&2
	exit 1
}
grep -v '^ *"timestamp":' "$out/sbom.json" >"$out/$name.sbom.json"
rm -rf "$STAGE" "$out/sbom.json" "$out/sbom.log"
(cd "$out" && sha256sum -- * >SHA256SUMS)
cat "$out/SHA256SUMS"
