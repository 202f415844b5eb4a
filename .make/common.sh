# Shared by the recipes behind `make`; sourced by bash scripts.

PYTHON=${PYTHON:-python3}

say() { echo "$*" >&2; }

# fail WHAT REMEDY...: says what went wrong and what to do, and ends.
fail() {
    echo "error: $1" >&2
    shift
    for line; do echo "       $line" >&2; done
    exit 1
}

cache_dir() { echo "${XDG_CACHE_HOME:-$HOME/.cache}/dlc"; }

digest_of() { sha256sum <"$1" | cut -d' ' -f1; }

# check_digest EXPECTED FILE
check_digest() {
    local found
    found=$(digest_of "$2")
    [ "$found" = "$1" ] || fail "$2 is not what this release was made with (SHA-256 $found, expected $1)" \
        "Run this again; if that does not help, the source serves another file under this name."
}

need_python() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null ||
        fail "Python 3.8 or newer is missing" "Install it, or name it: PYTHON=/path/to/python3."
}

# need_space FOLDER MEGABYTES
need_space() {
    local free
    free=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$2" ] || fail "$1 has $free MB free, $2 MB are needed" \
        "Free some, or set XDG_CACHE_HOME to a folder on a larger disk."
}

# take_lock FILE: one run at a time; the lock goes with this process.
take_lock() {
    command -v flock >/dev/null || return 0
    exec 9>"$1"
    flock -n 9 || { say "waiting for another run to finish"; flock 9; }
}
