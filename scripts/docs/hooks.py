"""Hooks that MkDocs calls while it builds the site. They fill in pages that say ``rendered: true``.

Such a page calls the functions of ``functions`` in double braces: excerpts of code, tables and figures of a real run. A
name that does not exist ends the build.
"""

from __future__ import annotations

import re
from typing import Any

import commands
import drawing
import excerpts
import jinja2
import latex2mathml.converter
import names
import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

LEAVES_DOCS = re.compile(r"\[([^]]+)\]\((?:\.\./)+(?:tests|scripts|converter|reference)[^)]*\)")
CONTRIBUTING = "[CONTRIBUTING.md](CONTRIBUTING.md)"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Draw formulas and flowcharts without a script. Their fences are called math and mermaid, as on GitHub."""
    fences = [
        {"name": name, "class": name, "format": draw} for name, draw in (("math", formula), ("mermaid", flowchart))
    ]
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = fences
    return config


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Fill in a page. A link that leaves docs/ becomes its text, as its target is not on the site."""
    if page.meta.get("rendered"):
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        markdown = environment.from_string(markdown).render(functions())
    return LEAVES_DOCS.sub(r"\1", markdown)


def functions() -> dict[str, Any]:
    """Return the functions that a page can call."""
    own = {"code": code, "commands": commands.commands, "names": names.names, "readme": readme, "text": text}
    return own | {name: getattr(pages, name) for name in pages.__all__}


def code(file: str, name: str) -> str:
    """Return lines of a Python file as a block, numbered as in the file."""
    found = excerpts.code(file, name)
    lines = f"lines {found.first} to {found.last}" if found.last > found.first else f"line {found.first}"
    return f'```python title="{file}, {lines}" linenums="{found.first}"\n{found.text}\n```'


def readme(heading: str) -> str:
    """Return a section of README.md, with links for the site."""
    return for_the_site(excerpts.section("README.md", heading).text)


def text(file: str) -> str:
    """Return a whole Markdown file of the repository, without its title."""
    return for_the_site((excerpts.ROOT / file).read_text(encoding="utf-8").partition("\n")[2])


def for_the_site(markdown: str) -> str:
    """Return Markdown whose links from the top of the repository are links from the top of the site."""
    return markdown.replace(CONTRIBUTING, "[Contributing](contributing.md)").replace("](docs/", "](")


def formula(source: str, _language: str, css_class: str, *_: Any, **_options: Any) -> str:
    """Return TeX as MathML."""
    return f'<div class="{css_class}">{latex2mathml.converter.convert(source, display="block")}</div>'


def flowchart(source: str, _language: str, css_class: str, *_: Any, **_options: Any) -> str:
    """Return Mermaid as SVG."""
    return f'<figure class="drawn wide {css_class}"><div class="scroll">{drawing.svg(source)}</div></figure>'
