#!/bin/sh
# Make the virtual environment that scripts/demo and scripts/test share, and print its path.
#
#   sh scripts/prepare_venv.sh EXTRA        EXTRA is one of pyproject.toml's: embedded, dev
#
# busq itself is installed editable, so the source is always the current one. What is installed is done again only
# when pyproject.toml or the place of this folder changed. BUSQ_VENV names another place than .venv, PYTHON
# another Python than the first good one on PATH. Only the path goes to stdout.
set -eu
extra=$1
repo=$(cd "$(dirname "$0")/.." && pwd)

give_up() {
    echo "$*" >&2
    exit 1
}

find_python() {
    for python in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
        [ -n "$python" ] || continue
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            return
        fi
    done
    give_up "busq needs Python 3.11 or later; found: $(python3 --version 2>&1 || true). Set PYTHON to one."
}

choose_place() {
    if [ -n "${BUSQ_VENV:-}" ]; then
        venv=$BUSQ_VENV
    elif [ -w "$repo/.venv" ] || { [ ! -e "$repo/.venv" ] && [ -w "$repo" ]; }; then
        venv=$repo/.venv
    else # a checkout that belongs to someone else
        for folder in "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/busq" "${TMPDIR:-/tmp}/busq-$(id -u)"; do
            # -O: a folder in /tmp that someone else made beforehand is not ours to run programs from.
            if mkdir -p -m 700 "$folder" 2>/dev/null && [ -O "$folder" ] && [ -w "$folder" ]; then
                venv=$folder/venv-$(echo "$repo" | cksum | cut -d ' ' -f 1)
                return
            fi
        done
        give_up "$repo cannot be written to, nor any cache folder. Set BUSQ_VENV to a path for the environment."
    fi
}

works() {
    "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

make_venv() {
    echo "making $venv" >&2
    "$python" -m venv --clear "$venv" >/dev/null 2>&1 && works && return
    # Debian keeps venv in a package of its own. virtualenv does as well, where there is a pip to bring it.
    rm -rf "$venv"
    "$python" -m virtualenv -q "$venv" >/dev/null 2>&1 && works && return
    tool=$(mktemp -d)
    "$python" -m pip install -q --target "$tool" virtualenv >&2 2>/dev/null &&
        PYTHONPATH=$tool "$python" -m virtualenv -q "$venv" >&2 || true
    rm -rf "$tool"
    works || give_up "$python cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv"
}

choose_place
stamp=$venv/busq-$extra.stamp
state="$extra $repo $(cksum <"$repo/pyproject.toml")"
if works && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
    echo "$venv"
    exit 0
fi
find_python
works || make_venv
echo "installing busq[$extra] into $venv" >&2
"$venv/bin/python" -m pip install -q --disable-pip-version-check -e "$repo[$extra]" >&2
echo "$state" >"$stamp"
echo "$venv"
