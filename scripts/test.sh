#!/usr/bin/env bash
# Lint, types, layers, tests. Arguments go to pytest: bash scripts/test.sh tests/graph -k opset
# The whole suite runs in as many processes as there are cores; -n 0 runs it in one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
"$VENV_BIN/ruff" check .
"$VENV_BIN/ruff" format --check .
"$VENV_BIN/mypy"
"$VENV_BIN/lint-imports"
export OMP_NUM_THREADS=1 # each process has a core; threads of torch would only wait for each other
if [ $# -eq 0 ]; then
  exec "$VENV_BIN/pytest" --numprocesses auto --dist worksteal
fi
exec "$VENV_BIN/pytest" "$@"
