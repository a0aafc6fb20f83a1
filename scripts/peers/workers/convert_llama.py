"""Convert with llama.cpp: run convert_hf_to_gguf.py, then the quantization.

python convert_llama.py SCRIPT SOURCE OUT VARIANT
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import llama_cpp as llama

FILE_TYPES = {"q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0}


def main(script: str, source: str, out: Path, variant: str) -> None:
    out.mkdir(parents=True)
    whole = out / "model-f32.gguf"
    done = subprocess.run([sys.executable, script, source, "--outfile", whole, "--outtype", "f32"], check=False)
    if variant == "f32" or done.returncode:
        sys.exit(done.returncode)
    quantize(whole, out, variant)


def quantize(whole: Path, out: Path, variant: str) -> None:
    """Write ``model-VARIANT.gguf``, and remove the float32 file."""
    params = llama.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[variant]
    if llama.llama_model_quantize(bytes(whole), bytes(out / f"model-{variant}.gguf"), ctypes.byref(params)):
        sys.exit(f"llama.cpp cannot quantize to {variant}")
    whole.unlink()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
