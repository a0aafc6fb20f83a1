#!/usr/bin/env bash
# The main job on the checkpoint that ships with the project: convert, check, generate.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$VENV_BIN/gpt2onnx" demo "$@"
