"""``python -m converter.cli``."""

from converter.cli import cli

if __name__ == "__main__":
    cli()
