"""mobius: a graph of its own, which it builds from the config alone."""

import sys
from collections.abc import Sequence
from pathlib import Path

from exporting import serve
from mobius.__main__ import main


def export(source: Path, out: Path, arguments: Sequence[str] = ()) -> None:
    sys.argv = ["mobius", "build", "--config", str(source), *arguments, str(out)]
    main()


if __name__ == "__main__":
    serve(export)
