#!/usr/bin/env bash
# Format, clippy and dependency checks. Run by `make lint`.
set -euo pipefail
cd "$(dirname "$0")/.."
. .make/common.sh

CARGO=${CARGO:-cargo}

"$CARGO" fmt --check || fail "the format is not rustfmt's" "Run: cargo fmt"
# Each set of features on its own; torch in release, where `make build` has
# compiled libtorch's C++ side already.
"$CARGO" clippy --locked --all-targets --no-default-features -- -D warnings
"$CARGO" clippy --locked --all-targets --no-default-features --features planted -- -D warnings
"$CARGO" clippy --locked --all-targets --release -- -D warnings

if ! "$CARGO" deny --version >/dev/null 2>&1; then
    say "cargo-deny is missing: installing it (some minutes, once)"
    "$CARGO" install --locked cargo-deny || fail "cargo-deny could not be installed" "Install it yourself: cargo install --locked cargo-deny"
fi
"$CARGO" deny --all-features check licenses bans sources

# The advisories are in a git repository that is not always in reach; that is
# no fault of this tree, but it must not look like a pass either.
report=$(mktemp)
trap 'rm -f "$report"' EXIT
if "$CARGO" deny --all-features check advisories >"$report" 2>&1; then
    say "advisories ok"
elif grep -q "failed to fetch advisory database" "$report"; then
    say "warning: security advisories were NOT checked: the advisory database could not be fetched."
    say "         Run \`make lint\` again where it can be reached."
else
    cat "$report" >&2
    exit 1
fi
