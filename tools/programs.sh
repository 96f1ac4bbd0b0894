#!/bin/sh
# tools/programs.sh: unpack Debian's packages of the programs that the tests and benchmarks use into .cache/debian.
# Needs no root: apt works on lists and folders of its own. Where a package cannot be had, it says so and
# succeeds, and the tests that need the program are skipped.
set -eu
packages="prometheus prometheus-alertmanager nginx"
browser=chromium-headless-shell # a Chromium without windows, where none is installed

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
	mkdir -p "$root/usr/bin"
	for program in "$root"/usr/sbin/*; do
		[ ! -e "$program" ] || ln -sf "../sbin/${program##*/}" "$root/usr/bin" # where all others are
	done
	touch "$root/$1.unpacked"
}

# The libraries and fonts that this machine lacks come with the browser, and it has to be told where they are.
unpack_browser() {
	mkdir -p "$work/lists/partial" "$work/archives/partial"
	apt update || return 1
	apt -o Dir::State::status=/var/lib/dpkg/status -o Debug::NoLocking=1 \
		-y --no-install-recommends --download-only install "$browser" || return 1
	for package in "$work"/archives/*.deb; do dpkg -x "$package" "$root" || return 1; done
	libraries=
	# libpulse looks for a part of itself in a folder of the system.
	for folder in "$root"/lib/*-linux-gnu "$root"/usr/lib/*-linux-gnu "$root"/usr/lib/*-linux-gnu/pulseaudio; do
		libraries="$libraries:$folder"
	done
	cat >"$root/fonts.conf" <<-END
		<?xml version="1.0"?>
		<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
		<fontconfig>
		<dir>/usr/share/fonts</dir><dir>$root/usr/share/fonts</dir><cachedir>$root/var/cache/fontconfig</cachedir>
		</fontconfig>
	END
	cat >"$root/usr/bin/$browser" <<-END
		#!/bin/sh
		export LD_LIBRARY_PATH="${libraries#:}" FONTCONFIG_FILE="$root/fonts.conf"
		exec "$root/usr/lib/chromium/$browser" "\$@"
	END
	touch "$root/$browser.unpacked"
}

fetching() {
	echo "Fetching Debian's package $1 into .cache/debian: about ten seconds, once"
}

miss() {
	echo "tools/programs.sh: Debian's package $1 cannot be had here" >&2
}

for package in $packages; do
	[ ! -e "$root/$package.unpacked" ] || continue
	fetching "$package"
	unpack "$package" || miss "$package"
	rm -rf "$work"
done

if [ ! -e "$root/$browser.unpacked" ] && ! command -v chromium >/dev/null && ! command -v "$browser" >/dev/null; then
	fetching "$browser"
	unpack_browser || miss "$browser"
	rm -rf "$work"
fi
