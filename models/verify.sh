#!/usr/bin/env bash
# Checks the weights that came with the repository against SHA256SUMS and says
# which models have none. Run by `make models`; changes nothing.
set -euo pipefail
cd "$(dirname "$0")"
. ../.make/common.sh

shopt -s nullglob
bad=0
for manifest in *.toml; do
    name=${manifest%.toml}
    weights=$(sed -n 's/^weights *= *"\([^"]*\)".*/\1/p' "$manifest")
    [ -n "$weights" ] || fail "models/$manifest names no weights" 'Add a line  weights = "FILE"'
    expected=$(awk -v file="$weights" '$2 == file { print $1 }' SHA256SUMS 2>/dev/null || true)
    if [ -f "$weights" ] && [ -z "$expected" ]; then
        say "$name: models/$weights, your own (models/SHA256SUMS does not list it)"
    elif [ -f "$weights" ] && [ "$(digest_of "$weights")" = "$expected" ]; then
        say "$name: models/$weights, verified"
    elif [ -n "$expected" ]; then
        say "error: $name: models/$weights is missing or not the one that was committed"
        say "       Get it back with: git checkout -- models/$weights"
        say "       If you trained it anew and mean to keep it: (cd models && sha256sum *.safetensors >SHA256SUMS)"
        bad=1
    else
        say "$name: no weights yet (models/$weights); \`train\` skips it"
    fi
done
exit $bad
