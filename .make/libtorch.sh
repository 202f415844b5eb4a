#!/usr/bin/env bash
# Installs the CPU build of libtorch that the crate `tch` asks for, out of the
# Python wheels of the same release, into the user's cache, and tells cargo
# where it lies. Run by `make libtorch`; never by hand.
#
# The wheels are checked against the digests below and what was unpacked is
# checked, on every run, against $LISTING. All is made in a temporary folder
# and renamed, so that a killed run leaves nothing half-made; wheels that had
# arrived are kept for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
. .make/common.sh

VERSION=2.13.0
# One line per wheel: SHA-256, requirement, platforms that pip may take it for.
WHEELS="\
60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7 torch==$VERSION manylinux_2_28_x86_64
7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548 nvidia-cuda-runtime==13.0.96 manylinux2014_x86_64 manylinux_2_25_x86_64
4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8 nvidia-cuda-cupti==13.0.85 manylinux_2_25_x86_64 manylinux2014_x86_64"
# SHA-256 of the list of digests of all installed files.
LISTING=90f7feb4c49f79904f6fbd1647bb77b92cb8093ce7f49fb5145578a4ac48449a

CACHE=$(cache_dir)
PREFIX=$CACHE/libtorch-$VERSION-${LISTING:0:12}
CARGO_CONFIG=.cargo/config.toml
MARK="# Written by \`make libtorch\`; not in git."

# True if every file of the prefix $1 is there and unharmed.
intact() {
    [ -f "$1/SHA256SUMS" ] &&
        [ "$(digest_of "$1/SHA256SUMS")" = "$LISTING" ] &&
        (cd "$1" && sha256sum --quiet --strict --check SHA256SUMS >/dev/null 2>&1)
}

# Fetches the wheel of digest $1 and requirement $2 for the platforms after it.
fetch_wheel() {
    local digest=$1 requirement=$2 platforms=() part
    shift 2
    for platform; do platforms+=(--platform "$platform"); done
    if [ -f "$CACHE/wheels/$digest.whl" ] && [ "$(digest_of "$CACHE/wheels/$digest.whl")" = "$digest" ]; then
        say "$requirement: already here"
        return
    fi
    say "$requirement: downloading"
    part=$(mktemp -d "$CACHE/wheels/part.XXXXXX")
    # pip's own temporary files go beside the target: /tmp may be too small.
    # The second variable is for a pip that can go on after a broken connection.
    TMPDIR=$part PIP_RESUME_RETRIES=${PIP_RESUME_RETRIES:-5} "$PYTHON" -m pip download --no-deps --no-cache-dir --only-binary=:all: \
        --python-version 3.11 --implementation cp --abi cp311 --abi none \
        "${platforms[@]}" --dest "$part/wheel" "$requirement" >&2 ||
        fail "pip could not fetch $requirement (its reason is above)" \
            "If this machine is offline or uses a proxy or a package mirror, set pip up for it" \
            "(PIP_INDEX_URL, PIP_PROXY, or the wheel's folder in PIP_FIND_LINKS) and run this again;" \
            "or set LIBTORCH to a libtorch $VERSION that you have."
    check_digest "$digest" "$part"/wheel/*.whl
    mv "$part"/wheel/*.whl "$CACHE/wheels/$digest.whl"
    rm -rf "$part"
}

# Unpacks what a CPU build needs of the wheels into the new prefix $1.
unpack() {
    say "unpacking"
    "$PYTHON" - "$CACHE/wheels" "$1" $(cut -d' ' -f1 <<<"$WHEELS") <<'PYTHON'
import os, shutil, sys, zipfile

wheels, prefix, *digests = sys.argv[1:]
libraries = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}
for digest in digests:
    with zipfile.ZipFile(os.path.join(wheels, digest + ".whl")) as wheel:
        for name in wheel.namelist():
            folder, base = os.path.split(name)
            if name.startswith("torch/include/") and base:
                target = os.path.join(prefix, name[len("torch/"):])
            elif base in libraries and folder in ("torch/lib", "nvidia/cu13/lib"):
                target = os.path.join(prefix, "lib", base)
                libraries.remove(base)
            else:
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with wheel.open(name) as source, open(target, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
if libraries:
    sys.exit("not in the wheels: " + ", ".join(sorted(libraries)))
PYTHON
    # torch-sys links `torch`, in the wheels a shim that would pull in CUDA.
    echo "INPUT ( libtorch_cpu.so libc10.so )" >"$1/lib/libtorch.so"
    echo "$VERSION" >"$1/build-version"
    (cd "$1" && find build-version include lib -type f -print0 | LC_ALL=C sort -z |
        xargs -0 sha256sum) >"$1/SHA256SUMS.new"
    mv "$1/SHA256SUMS.new" "$1/SHA256SUMS"
    check_digest "$LISTING" "$1/SHA256SUMS"
}

install_prefix() {
    need_python
    "$PYTHON" -m pip --version >/dev/null 2>&1 ||
        fail "Python's pip is missing" "Install it (for example the package python3-pip, or: $PYTHON -m ensurepip --user)."
    mkdir -p "$CACHE/wheels"
    need_space "$CACHE" 2000
    rm -rf "$CACHE"/wheels/part.* "$CACHE"/libtorch-new.*
    say "libtorch: fetching it out of three wheels, 540 MB in all"
    while read -r wheel; do
        # shellcheck disable=SC2086  # one word per platform
        fetch_wheel $wheel
    done <<<"$WHEELS"
    local new
    new=$(mktemp -d "$CACHE/libtorch-new.XXXXXX")
    chmod 755 "$new"
    unpack "$new"
    rm -rf "$PREFIX"
    mv "$new" "$PREFIX"
    rm -rf "$CACHE/wheels"
}

tell_cargo() {
    mkdir -p .cargo
    if [ -f $CARGO_CONFIG ] && ! grep -qF "$MARK" $CARGO_CONFIG; then
        grep -qF "LIBTORCH" $CARGO_CONFIG ||
            fail "$CARGO_CONFIG is your own and does not say where libtorch is" \
                "Add to it:  [env]  LIBTORCH = \"$PREFIX\""
        return
    fi
    printf '%s\n[env]\nLIBTORCH = "%s"\n' "$MARK" "$PREFIX" >$CARGO_CONFIG.new
    if cmp -s $CARGO_CONFIG.new $CARGO_CONFIG; then rm $CARGO_CONFIG.new; else mv $CARGO_CONFIG.new $CARGO_CONFIG; fi
}

if [ -n "${LIBTORCH:-}" ]; then
    [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] && [ -d "$LIBTORCH/include/torch" ] ||
        fail "LIBTORCH=$LIBTORCH holds no libtorch" "It must have lib/libtorch_cpu.so and include/; or unset it."
    say "libtorch: yours, LIBTORCH=$LIBTORCH"
    exit 0
fi
[ "$(uname -sm)" = "Linux x86_64" ] ||
    fail "there is a recipe for Linux on x86_64 only, this is $(uname -sm)" "Set LIBTORCH to a libtorch $VERSION of your own."
mkdir -p "$CACHE"
take_lock "$CACHE/libtorch.lock"
if ! intact "$PREFIX"; then
    [ ! -e "$PREFIX" ] || say "libtorch: $PREFIX is damaged, making it anew"
    install_prefix
fi
tell_cargo
say "libtorch: $VERSION, verified, in $PREFIX"
