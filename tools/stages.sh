#!/bin/sh
# tools/stages.sh TARGET...: make one target after the other until one fails, and say which it is, of how many.
# What a target does is said in the Makefile, behind its ##.
set -eu
cd "$(dirname "$0")/.."

number=0
for target; do
	number=$((number + 1))
	about=$(sed -n "s/^$target:.*## //p" Makefile)
	printf '[%d/%d] %s: %s\n' "$number" "$#" "$target" "$about"
	"${MAKE:-make}" --no-print-directory --silent "$target"
done
