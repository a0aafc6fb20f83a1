#!/usr/bin/env bash
# The JavaScript clients: the packages that tests/clients/js/package-lock.json pins, in .clients/js, where the workers
# in tests/clients/js find them through a link. Called by scripts/clients.sh.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
HERE="$ROOT/tests/clients/js"
FOLDER="$ROOT/.clients/js"

command -v npm >/dev/null || {
  echo "js: cannot be installed: there is no npm; Debian has it with: apt-get install npm (Node.js 20 or newer)"
  exit 1
}
command -v "${CHROMIUM:-chromium}" >/dev/null ||
  echo "js: there is no Chromium, and the browser's tests are skipped; Debian has it with: apt-get install chromium"

pins="$(node -p 'Object.entries(require(process.argv[1]).dependencies).map((pin) => pin.join("@")).join(" ")' "$HERE/package.json")"
if [ "$(cat "$FOLDER/installed" 2>/dev/null)" = "$pins" ]; then
  echo "js: there"
else
  rm -rf "$FOLDER"
  mkdir -p "$FOLDER"
  cp "$HERE/package.json" "$HERE/package-lock.json" "$FOLDER"
  # onnxruntime-node has the CPU's library in its package; skip is for what it would load beside it
  if ONNXRUNTIME_NODE_INSTALL=skip npm ci --prefix "$FOLDER" --no-audit --no-fund >"$ROOT/.clients/js.log" 2>&1; then
    echo "$pins" >"$FOLDER/installed"
    echo "js: installed"
  else
    echo "js: cannot be installed: $(grep -m 1 'npm error' "$ROOT/.clients/js.log")"
    exit 1
  fi
fi
ln -sfn ../../../.clients/js/node_modules "$HERE/node_modules"
