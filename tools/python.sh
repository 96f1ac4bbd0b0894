#!/bin/sh
# tools/python.sh VERSION: print the path of an installed Python of that version (3.12), or nothing.
# A name on PATH proves little (version managers put failing stand-ins there), so each candidate is run.
set -eu
version=$1

for python in "python$version" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python; do
	path=$("$python" -c 'import sys; print(sys.executable)' 2>/dev/null) || continue
	if "$path" -c 'import ensurepip, venv' 2>/dev/null; then
		echo "$path"
		exit
	fi
	echo "Python $version is left out: $path has no ensurepip (Debian's package python$version-venv)" >&2
done
