#!/bin/sh
# tools/programs.sh: unpack Debian's packages of the programs that the tests use into .cache/debian.
# Needs no root: apt works on lists and folders of its own. Where a package cannot be had, it says so and
# succeeds, and the tests that need the program are skipped.
set -eu
packages="prometheus prometheus-alertmanager"

cd "$(dirname "$0")/.."
root=$PWD/.cache/debian
work=$root/apt

apt() {
	apt-get -qq \
		-o Dir::State="$work" -o Dir::State::lists="$work/lists" -o Dir::Cache="$work" \
		-o APT::Sandbox::User=root -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 \
		"$@"
}

# The list of what is unpacked is written last, so that an interrupted run is repeated.
unpack() {
	mkdir -p "$work/lists/partial" "$work/archives/partial"
	(cd "$work" && apt update && apt download "$1") || return 1
	dpkg -x "$work/$1"_*.deb "$root" || return 1
	touch "$root/$1.unpacked"
}

for package in $packages; do
	[ ! -e "$root/$package.unpacked" ] || continue
	unpack "$package" || echo "tools/programs.sh: Debian's package $package cannot be had here" >&2
	rm -rf "$work"
done
