#!/bin/sh
# tools/image.sh: build deploy/docker/Dockerfile without a container engine and without a registry, for the tests.
# The base is this machine's own distribution with its Python, unpacked and not configured; the packages come from where
# apt and pip get theirs. Leaves .cache/image/root, the image's file system, and .cache/image/image.json, its settings.
# Needs root and Debian's packages buildah and mmdebstrap, which it installs on CI and asks for elsewhere.
set -eu

cd "$(dirname "$0")/.."
cache=$PWD/.cache/image
python=$PWD/.venv/bin/python

stop() {
	printf 'tools/image.sh: %s\n' "$@" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || stop "expected root: only root can lay out the files of an image as their owners"
if ! { command -v buildah && command -v mmdebstrap && command -v ip; } >/dev/null; then
	[ "${CI:-}" = true ] || stop "expected three programs: apt-get install buildah mmdebstrap iproute2"
	apt-get -qq update
	apt-get -qq install --yes --no-install-recommends buildah mmdebstrap iproute2 >/dev/null
fi
# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}") origin=$(. /etc/os-release && echo "${NAME%% *}")

mkdir -p "$cache"
work=$(mktemp -d "$cache/work.XXXXXX")
driver=overlay
builder() {
	buildah --root "$work/storage" --runroot "$work/run" --storage-driver "$driver" "$@"
}
finish() {
	builder umount --all >/dev/null 2>&1 || true
	umount "$work" 2>/dev/null || true
	rm -rf "$work"
}
# In memory, if that may be: the layers are many small files, which are read once and thrown away.
mount -t tmpfs -o size=2g,mode=0700 tmpfs "$work" 2>/dev/null || true
trap finish EXIT
trap 'exit 1' HUP INT TERM
# Where there is no overlay, as in some containers, every layer is a copy of all below it.
builder info >/dev/null 2>&1 || driver=vfs

# As the lines of sources.list: the distribution's own packages, without those of others of which apt knows.
sources() {
	# shellcheck disable=SC2016  # apt's own variables
	apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' \
		'Created-By: Packages' "Origin: $origin" "Codename: $codename" | grep " $codename " | sort -u
}

# What Python, the commands of the Dockerfile and a look round need. Unpacking takes a fifth of the time of installing.
if [ ! -e "$cache/base.tar" ]; then
	[ -n "$(sources)" ] || apt-get -qq update
	sources >"$work/sources.list"
	[ -s "$work/sources.list" ] || stop "expected a distribution with apt, such as Debian or Ubuntu; apt names no sources"
	mmdebstrap --quiet --mode=root --variant=extract \
		--include=base-files,coreutils,dash,findutils,grep,libc-bin,python3,python3-venv,sed \
		"$codename" "$work/base.tar" "$work/sources.list"
	mv "$work/base.tar" "$cache/base.tar"
fi
version=$(tar --list --file "$cache/base.tar" | sed -n 's#^\./usr/bin/python\(3\.[0-9]*\)$#\1#p')

# Fetched out here, as pip's settings name files and addresses of this machine; in there pip gets by without a network.
for lock in requirements.lock requirements-build.lock; do
	"$python" -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
		--python-version "$version" --dest "$cache/wheels" --requirement "$lock"
done
printf '[global]\nno-index = true\nfind-links = /srv/wheels\ndisable-pip-version-check = true\n' >"$work/pip.conf"

base=$(builder from scratch)
builder add --quiet "$base" "$cache/base.tar" / >/dev/null
builder commit --quiet "$base" localhost/base >/dev/null
# The format of OCI knows no health checks.
builder build --quiet --isolation chroot --format docker --from localhost/base --file deploy/docker/Dockerfile \
	--volume "$cache/wheels:/srv/wheels:ro" --volume "$work/pip.conf:/etc/pip.conf:ro" --tag localhost/braze-exporter . >&2
builder inspect --type image localhost/braze-exporter >"$work/image.json"

image=$(builder from localhost/braze-exporter)
rm -rf "$cache/root"
cp -a "$(builder mount "$image")" "$cache/root"
mv "$work/image.json" "$cache/image.json"
