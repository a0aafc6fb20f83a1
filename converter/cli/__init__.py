"""The command line: one verb a task, a file for each.

Exit codes: 0 done or match, 1 mismatch, 2 bad input, 3 internal error.
"""

from converter.cli import bench, check, convert, demo, generate, inspect, run  # noqa: F401 - each adds its commands
from converter.cli.group import cli

__all__ = ["cli"]
