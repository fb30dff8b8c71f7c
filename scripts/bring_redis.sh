#!/bin/sh
# Print the path of a redis-server (or valkey-server) of version 7.0 or later; bring one when there is none.
#
#   1. BUSQ_REDIS_SERVER, then PATH, then what an earlier run unpacked
#   2. as root with apt: the system's package. Its service is not started
#   3. otherwise with apt: the packages are downloaded and unpacked into a cache folder, and nothing is installed
#
# Only the path goes to stdout. Safe to repeat.
set -eu
PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
cd /

fit() {
    major=$("$1" --version 2>/dev/null | sed -n 's/.*[ ]v=\([0-9][0-9]*\)\..*/\1/p') || return 1
    [ "${major:-0}" -ge 7 ]
}

print_if_there() {
    for name in "${BUSQ_REDIS_SERVER:-}" redis-server valkey-server "$cache/redis-server"; do
        found=$(command -v "${name:-/}" 2>/dev/null) || continue
        if fit "$found"; then
            echo "$found"
            exit 0
        fi
    done
}

choose_cache() {
    for cache in "${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/busq/redis" "${TMPDIR:-/tmp}/busq-redis-$(id -u)"; do
        # -O: a folder in /tmp that someone else made beforehand is not ours to run programs from.
        if mkdir -p -m 700 "$cache" 2>/dev/null && [ -O "$cache" ] && [ -w "$cache" ]; then
            return
        fi
    done
    give_up "there is no folder to unpack one into"
}

give_up() {
    echo "bring_redis.sh: no redis-server 7.0 or later, and $1." >&2
    echo "Install one with your system's packages, or set BUSQ_REDIS_SERVER to its path." >&2
    exit 1
}

install_as_root() (
    # The package would start its service; this file is how Debian is told not to. One that is there stays.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -q -y --no-install-recommends redis-server; } >&2
)

# apt with lists and downloads of our own: no root needed, and the system's lists may be missing or old.
our_apt() {
    apt-get -q -o Dir::State::lists="$cache/apt/lists" -o Dir::Cache="$cache/apt/cache" \
        -o Debug::NoLocking=1 -o APT::Sandbox::User=root "$@"
}

unpack_into_cache() {
    rm -rf "$cache"/unpacked.* "$cache/redis-server"
    unpacked=$(mktemp -d "$cache/unpacked.XXXXXX")
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/cache/archives/partial"
    our_apt update >&2 || return 1
    # What an installation would add here: the server and those libraries that this system does not have yet. Lines
    # with an old version in brackets are upgrades, which are left alone.
    missing=$(our_apt -s install --no-install-recommends redis-server |
        sed -n 's/^Inst \([^ ]*\) (.*/\1/p' | grep -v -e '^redis-server$' -e '^redis-tools$' || true)
    # shellcheck disable=SC2086 # one word for each package
    (cd "$unpacked" && our_apt download redis-server redis-tools $missing) >&2 || return 1
    for package in "$unpacked"/*.deb; do
        dpkg -x "$package" "$unpacked" || return 1
        rm -f "$package"
    done
    libraries=$(find "$unpacked" -name '*.so.*' | sed 's,/[^/]*$,,' | sort -u | paste -s -d : -)
    # The start script comes last and in one step: a run that was cut off leaves none, and the next starts anew.
    cat >"$unpacked/start" <<END
#!/bin/sh
LD_LIBRARY_PATH='$libraries' exec '$unpacked/usr/bin/redis-server' "\$@"
END
    chmod 755 "$unpacked/start"
    fit "$unpacked/start" || return 1
    mv "$unpacked/start" "$cache/redis-server"
    rm -rf "$cache/apt"
}

cache=/nonexistent # one that is here needs no folder
print_if_there
choose_cache
print_if_there
command -v apt-get >/dev/null 2>&1 || give_up "this system has no apt to bring one with"
if [ "$(id -u)" = 0 ]; then
    install_as_root || echo "bring_redis.sh: apt-get install failed; unpacking into $cache instead" >&2
    print_if_there
fi
if ! unpack_into_cache; then
    rm -rf "$cache"
    give_up "apt brought none (its messages are above)"
fi
print_if_there
give_up "what was unpacked does not run"
