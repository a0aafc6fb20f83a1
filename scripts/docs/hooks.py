"""What MkDocs calls while it builds the site: pages that say ``rendered: true`` are filled in from the project itself.

Such a page calls, in double braces, the functions of ``FUNCTIONS``: excerpts of code, tables and figures of a real run.
A name that is not there ends the build.
"""

from __future__ import annotations

import re
from typing import Any

import commands
import drawing
import excerpts
import jinja2
import latex2mathml.converter
import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

LEAVES_DOCS = re.compile(r"\[([^]]+)\]\((?:\.\./)+(?:tests|scripts|converter|reference)[^)]*\)")
LINK_OF_README = re.compile(r"\]\((?:docs/)?([a-z/-]+)\.md\)")
CONTRIBUTING = "[CONTRIBUTING.md](CONTRIBUTING.md)"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Draw formulas and flowcharts, in fences called math and mermaid as GitHub has them, without a script."""
    fences = [
        {"name": name, "class": name, "format": draw} for name, draw in (("math", formula), ("mermaid", flowchart))
    ]
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = fences
    return config


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Fill a page in; what a link outside of docs/ leads to is not on the site, and only its text stays."""
    if page.meta.get("rendered"):
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        markdown = environment.from_string(markdown).render(functions())
    return LEAVES_DOCS.sub(r"\1", markdown)


def functions() -> dict[str, Any]:
    """What a page can call."""
    own = {"code": code, "commands": commands.commands, "readme": readme, "text": text}
    return own | {name: getattr(pages, name) for name in pages.__all__}


def code(file: str, name: str) -> str:
    """Lines of a Python file as a block, numbered as they are there."""
    found = excerpts.code(file, name)
    lines = f"lines {found.first} to {found.last}" if found.last > found.first else f"line {found.first}"
    return f'```python title="{file}, {lines}" linenums="{found.first}"\n{found.text}\n```'


def readme(heading: str) -> str:
    """A section of README.md, whose links are those of the site."""
    return for_the_site(excerpts.section("README.md", heading).text)


def text(file: str) -> str:
    """A whole Markdown file of the repository but its title."""
    return for_the_site((excerpts.ROOT / file).read_text(encoding="utf-8").partition("\n")[2])


def for_the_site(markdown: str) -> str:
    """Links from the top of the repository as links from the top of the site."""
    return LINK_OF_README.sub(r"](\1.md)", markdown.replace(CONTRIBUTING, "[Contributing](contributing.md)"))


def formula(source: str, _language: str, css_class: str, *_: Any, **_options: Any) -> str:
    """TeX as MathML."""
    return f'<div class="{css_class}">{latex2mathml.converter.convert(source, display="block")}</div>'


def flowchart(source: str, _language: str, css_class: str, *_: Any, **_options: Any) -> str:
    """Mermaid as SVG."""
    return f'<figure class="drawn wide {css_class}"><div class="scroll">{drawing.svg(source)}</div></figure>'
