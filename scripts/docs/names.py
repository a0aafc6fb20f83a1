"""Write the names that are imported from ``converter`` as references, which mkdocstrings fills in."""

from __future__ import annotations

import converter


def names(heading: str) -> str:
    """Return the names that ``converter`` has under a heading."""
    return "\n\n".join(map(_reference, converter._HEADINGS[heading]))


def _reference(name: str) -> str:
    thing = getattr(converter, name)
    bases = ", show_bases: true" if isinstance(thing, type) and issubclass(thing, Exception) else ""
    return f"::: {thing.__module__}.{thing.__qualname__}\n    options: {{ heading: {name}, toc_label: {name}{bases} }}"
