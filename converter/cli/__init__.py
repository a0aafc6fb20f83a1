"""The command line: one verb a task, a file for each.

Exit codes: ``group.EXIT_CODES``.
"""

from converter.cli import (  # noqa: F401 - each adds its commands
    bench,
    check,
    completion,
    convert,
    demo,
    generate,
    inspect,
    run,
    score,
    serve,
    verify,
)
from converter.cli.group import cli

__all__ = ["cli"]
