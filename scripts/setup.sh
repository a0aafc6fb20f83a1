# Sourced by demo.sh and test.sh: makes .venv with the pinned packages and this project, once for each lock file.
# Leaves $ROOT (the repository) and $VENV_BIN set.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV_BIN="$ROOT/.venv/bin"
PYTHON="${PYTHON:-python3}"

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "gpt2onnx needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version 2>&1). Set PYTHON to another one." >&2
  exit 2
}

# One version of torch has files for CPUs and for CUDA, so no hash is given for it; it pins its own CUDA packages.
TORCH="torch==2.13.0"

wanted="$(cat "$ROOT/requirements.lock" "$ROOT/pyproject.toml" "$ROOT/scripts/setup.sh" | cksum) $ROOT"
if [ "$(cat "$ROOT/.venv/installed" 2>/dev/null)" != "$wanted" ]; then
  echo "Setting up $ROOT/.venv; the first time takes a minute or two." >&2
  [ -x "$VENV_BIN/python" ] || "$PYTHON" -m venv "$ROOT/.venv"
  "$VENV_BIN/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
    --requirement "$ROOT/requirements.lock"
  "$VENV_BIN/python" -m pip install --quiet --disable-pip-version-check "$TORCH"
  "$VENV_BIN/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable "$ROOT"
  echo "$wanted" >"$ROOT/.venv/installed"
fi
