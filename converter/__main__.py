"""``python -m converter``, and the command ``gpt2onnx``."""

import sys

INTERRUPTED = 128 + 2  # as a shell tells SIGINT


def main() -> None:
    """Run the command line. Ctrl-C is no error while it is still being imported."""
    try:
        from converter.cli import cli
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    cli(prog_name="gpt2onnx")


if __name__ == "__main__":
    main()
