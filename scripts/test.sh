#!/usr/bin/env bash
# Lint, types, tests. Arguments go to pytest: bash scripts/test.sh tests/graph -k opset
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
"$VENV_BIN/ruff" check .
"$VENV_BIN/ruff" format --check .
"$VENV_BIN/mypy"
exec "$VENV_BIN/pytest" "$@"
