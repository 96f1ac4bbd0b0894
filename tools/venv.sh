#!/bin/sh
# tools/venv.sh PYTHON FOLDER LOCK: have a virtual environment in FOLDER with the packages that LOCK pins.
# In sh, because its work includes telling that there is no usable Python.
set -eu
python=$1 folder=$2 lock=$3

stop() {
	printf '%s\n' "$@" >&2
	exit 1
}

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
	stop "Expected Python 3.11 or newer, but '$python' does not run." \
		"Install python3, or name one that is there: make PYTHON=/path/to/python3"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
	stop "Expected Python 3.11 or newer, but '$python' is Python $version." \
		"Name a newer one: make PYTHON=python3.11"

# Debian and Ubuntu ship Python without ensurepip, and without it `python3 -m venv` fails half-way.
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
	stop "'$python' (Python $version) cannot make virtual environments: it has no ensurepip." \
		"On Debian and Ubuntu: apt-get install python3-venv (or python$version-venv, if '$python' is not the system's own)"

echo "Installing $(grep -c == "$lock" || true) packages into $folder: about half a minute, once"
"$folder/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$folder"

# Without --no-deps a package that LOCK lacks would be looked for, and its missing hash would be the error shown.
exec "$folder/bin/python" -m pip install --disable-pip-version-check --quiet --require-hashes --no-deps \
	--requirement "$lock"
