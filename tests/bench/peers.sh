#!/usr/bin/env bash
# A Python that has ONNX Runtime and OpenVINO, for `make bench-models`: its path on
# standard output, and nothing where pip cannot install them. Kept in the user's cache.
set -euo pipefail
cd "$(dirname "$0")/../.."
. .make/common.sh

VERSIONS="onnxruntime==1.32.0 openvino==2026.4.1 onnx==1.23.2 numpy pillow safetensors"
VENV=$(cache_dir)/peers
DONE=$VENV/installed

if [ "$(cat "$DONE" 2>/dev/null)" != "$VERSIONS" ]; then
    need_python
    say "peers: installing $VERSIONS into $VENV"
    rm -rf "$VENV"
    # shellcheck disable=SC2086  # one word per requirement
    if ! { "$PYTHON" -m venv "$VENV" && "$VENV/bin/pip" install --quiet $VERSIONS; } >&2; then
        say "peers: they cannot be installed here (the reason is above): left out of the comparison"
        exit 0
    fi
    echo "$VERSIONS" >"$DONE"
fi
echo "$VENV/bin/python"
