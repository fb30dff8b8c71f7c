#!/bin/sh
# Print the folder with promtool and prometheus in it; bring them when there are none.
#
#   1. PATH, then what an earlier run unpacked
#   2. with apt: Debian's package is downloaded and unpacked into a cache folder; nothing is installed
#
# Only the folder goes to stdout. Safe to repeat; exit 1 where neither is to be had.
set -eu
cd /

found=$(command -v promtool 2>/dev/null) && command -v prometheus >/dev/null 2>&1 && dirname "$found" && exit 0

cache=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/busq/prometheus
mkdir -p -m 700 "$cache"
if [ -x "$cache/bin/promtool" ]; then
    echo "$cache/bin"
    exit 0
fi
command -v apt-get >/dev/null 2>&1 || {
    echo "bring_prometheus.sh: no promtool on PATH, and no apt to bring one with" >&2
    exit 1
}

# Lists and downloads of our own: no root needed, and the system's lists may be missing or old.
our_apt() {
    apt-get -q -o Dir::State::lists="$cache/apt/lists" -o Dir::Cache="$cache/apt/cache" \
        -o Debug::NoLocking=1 -o APT::Sandbox::User=root "$@"
}

unpacked=$(mktemp -d "$cache/unpacked.XXXXXX")
mkdir -p "$cache/apt/lists/partial" "$cache/apt/cache/archives/partial"
our_apt update >&2
(cd "$unpacked" && our_apt download prometheus) >&2
dpkg -x "$unpacked"/prometheus_*.deb "$unpacked"
"$unpacked/usr/bin/promtool" --version >&2
# In one step: a run that was cut off leaves none, and the next starts anew.
ln -sfn "$unpacked/usr/bin" "$cache/bin"
rm -rf "$cache/apt"
echo "$cache/bin"
