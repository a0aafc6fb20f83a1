"""``python -m converter``."""

from converter.cli import cli

if __name__ == "__main__":
    cli(prog_name="gpt2onnx")
