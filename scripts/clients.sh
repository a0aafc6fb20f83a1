#!/usr/bin/env bash
# Installs software that opens model folders, each into an environment of its own: bash scripts/clients.sh [NAME …]
# pytest -m clients runs what is there. An environment is made anew when its pins have changed.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python3}"
cd "$ROOT"

TORCH="torch==2.13.0"
NUMPY="numpy==2.4.6"
# optimum-onnx itself asks for accelerate, without which it writes the token embedding twice
declare -A PINS=(
  [optimum]="optimum-onnx[onnxruntime]==0.1.0 transformers==4.57.6 accelerate==1.15.0 $TORCH onnxruntime==1.32.0"
  [genai]="onnxruntime-genai==0.18.0 onnxruntime==1.32.0 $NUMPY"
  [openvino]="openvino==2026.4.1 tokenizers==0.23.3 $NUMPY"
  [transformers]="transformers==5.23.0 $TORCH"
  # These export. Both old Optimums can merge the decoders without and with a past, around different attentions. ONNX
  # Runtime's own tool for GPT-2 needs the older transformers, whose cache was a tuple.
  [optimum-1.17]="optimum==1.17.1 transformers==4.37.2 accelerate==0.27.2 $TORCH onnx==1.16.2 onnxruntime==1.19.2 numpy==1.26.4 coloredlogs==15.0.1"
  [optimum-1.24]="optimum==1.24.0 transformers==4.48.3 accelerate==1.15.0 $TORCH onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0 $NUMPY"
  [mobius]="mobius-onnx==0.1.0 transformers==5.23.0 $TORCH onnxruntime==1.32.0"
)
# The oldest that PyPI has for Python 3.11, and what brought a new opset or operator since.
OLD_RUNTIMES=(1.15.0 1.17.3) # built for NumPy 1
RUNTIMES=(1.19.2 1.20.1 1.22.1 1.23.2 1.32.0)
for version in "${OLD_RUNTIMES[@]}"; do
  PINS[onnxruntime-$version]="onnxruntime==$version numpy==1.26.4"
done
for version in "${RUNTIMES[@]}"; do
  PINS[onnxruntime-$version]="onnxruntime==$version $NUMPY"
done

# One environment: install NAME PIN …
install() {
  local name="$1" folder=".clients/$1"
  shift
  if [ "$(cat "$folder/installed" 2>/dev/null)" = "$*" ]; then
    echo "$name: there"
    return
  fi
  rm -rf "$folder"
  mkdir -p .clients
  if "$PYTHON" -m venv "$folder" >".clients/$name.log" 2>&1 &&
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >>".clients/$name.log" 2>&1; then
    echo "$*" >"$folder/installed"
    echo "$name: installed"
  else
    echo "$name: cannot be installed: $(tail -n 1 ".clients/$name.log")"
    return 1
  fi
}

names=("$@")
[ $# -gt 0 ] || names=(optimum genai openvino transformers optimum-1.17 optimum-1.24 mobius "${OLD_RUNTIMES[@]/#/onnxruntime-}" "${RUNTIMES[@]/#/onnxruntime-}" js)
failed=0
for name in "${names[@]}"; do
  if [ "$name" = js ]; then
    bash scripts/clients_js.sh || failed=1
  elif [ -n "${PINS[$name]:-}" ]; then
    # the pins are words
    install "$name" ${PINS[$name]} || failed=1
  else
    echo "$name: there is no such client; there are ${!PINS[*]} js"
    failed=1
  fi
done
exit "$failed"
