#!/bin/sh
# Print the path of a redis-server (or valkey-server) of version 7.0 or later; bring one when there is none.
# `sh scripts/bring_redis.sh valkey` does so for a valkey-server of version 8.0 or later, and never takes another.
#
#   1. BUSQ_REDIS_SERVER (BUSQ_VALKEY_SERVER), then PATH, then what an earlier run unpacked
#   2. as root with apt: the system's package. Its service is not started. Not for Valkey, where it is a backport
#   3. otherwise with apt: the packages are downloaded and unpacked into a cache folder, and nothing is installed
#
# Only the path goes to stdout. Safe to repeat.
set -eu
PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
cd /

case ${1:-redis} in
redis) server=redis-server tools=redis-tools least=7 names="${BUSQ_REDIS_SERVER:-} redis-server valkey-server" ;;
valkey) server=valkey-server tools=valkey-tools least=8 names="${BUSQ_VALKEY_SERVER:-} valkey-server" ;;
*)
    echo "bring_redis.sh: it takes redis, valkey or nothing" >&2
    exit 2
    ;;
esac
set_by=$(echo "${server%-server}" | tr a-z A-Z)

fit() {
    major=$("$1" --version 2>/dev/null | sed -n 's/.*[ ]v=\([0-9][0-9]*\)\..*/\1/p') || return 1
    [ "${major:-0}" -ge "$least" ]
}

print_if_there() {
    # shellcheck disable=SC2086 # one word for each name
    for name in $names "$cache/$server"; do
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
    echo "bring_redis.sh: no $server $least.0 or later, and $1." >&2
    echo "Install one with your system's packages, or set BUSQ_${set_by}_SERVER to its path." >&2
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
        -o Dir::Etc::sourcelist="$cache/apt/sources.list" -o Acquire::http::Timeout=15 -o Acquire::Retries=1 \
        -o Debug::NoLocking=1 -o APT::Sandbox::User=root "$@"
}

# The system's own list, and for Valkey on Debian its backports.
list_sources() {
    cat /etc/apt/sources.list >"$cache/apt/sources.list" 2>/dev/null || : >"$cache/apt/sources.list"
    id=$(. /etc/os-release && echo "${ID:-}") name=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    if [ "$server" = valkey-server ] && [ "$id" = debian ] && [ -n "$name" ]; then
        echo "deb http://deb.debian.org/debian $name-backports main" >>"$cache/apt/sources.list"
    fi
}

unpack_into_cache() {
    rm -rf "$cache/unpacked-$server".* "$cache/$server"
    unpacked=$(mktemp -d "$cache/unpacked-$server.XXXXXX")
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/cache/archives/partial"
    list_sources
    our_apt update >&2 || return 1
    # What an installation would add here: the server and those libraries that this system does not have yet. Lines
    # with an old version in brackets are upgrades, which are left alone.
    missing=$(our_apt -s install --no-install-recommends "$server" |
        sed -n 's/^Inst \([^ ]*\) (.*/\1/p' | grep -v -e "^$server\$" -e "^$tools\$" || true)
    # shellcheck disable=SC2086 # one word for each package
    (cd "$unpacked" && our_apt download "$server" "$tools" $missing) >&2 || return 1
    for package in "$unpacked"/*.deb; do
        dpkg -x "$package" "$unpacked" || return 1
        rm -f "$package"
    done
    libraries=$(find "$unpacked" -name '*.so.*' | sed 's,/[^/]*$,,' | sort -u | paste -s -d : -)
    # The start script comes last and in one step: a run that was cut off leaves none, and the next starts anew.
    cat >"$unpacked/start" <<END
#!/bin/sh
LD_LIBRARY_PATH='$libraries' exec '$unpacked/usr/bin/$server' "\$@"
END
    chmod 755 "$unpacked/start"
    fit "$unpacked/start" || return 1
    mv "$unpacked/start" "$cache/$server"
    rm -rf "$cache/apt"
}

cache=/nonexistent # one that is here needs no folder
print_if_there
choose_cache
print_if_there
command -v apt-get >/dev/null 2>&1 || give_up "this system has no apt to bring one with"
if [ "$(id -u)" = 0 ] && [ "$server" = redis-server ]; then
    install_as_root || echo "bring_redis.sh: apt-get install failed; unpacking into $cache instead" >&2
    print_if_there
fi
if ! unpack_into_cache; then
    rm -rf "$cache/unpacked-$server".* "$cache/apt"
    give_up "apt brought none (its messages are above)"
fi
print_if_there
give_up "what was unpacked does not run"
