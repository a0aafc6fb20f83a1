"""Make the picture of README.md: the head of a report on the bundled checkpoint.

    python scripts/docs/picture.py

It converts and checks the checkpoint, opens the report in Chromium, and writes ``docs/img/report.png``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from PIL import Image, ImageChops

from converter.data import CHECKPOINT

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "img" / "report.png"

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1320, 4000  # of the window; what stays empty below the page is cut off
SHARPNESS = 1.5  # dots to a pixel of the page: sharp on a dense screen, and less than 200 kB
COLOURS = 64
MARGIN = 32  # dots below the last line

# What of the page is shown: its head, the first table, and the row of figures that says most.
SHOWN = """<style>
dl.facts, .legs + .legs, .scroll + .scroll, .keys, figcaption, #figures { display: none; }
main > section:nth-of-type(n + 3) { display: none; }
.figures > :not(:nth-child(2), :nth-child(3)) { display: none; }
#legs { margin-top: 1rem; }
main > section + section { margin-top: 2rem; }
</style>"""


@click.command()
def main() -> None:
    """Make the picture anew."""
    with TemporaryDirectory() as folder:
        page = report(Path(folder))
        screenshot(page, Path(folder) / "page.png")
        PICTURE.parent.mkdir(exist_ok=True)
        trimmed(Path(folder) / "page.png").quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    click.echo(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


def report(folder: Path) -> Path:
    """Return the report of a check, cut down to what is shown."""
    shutil.copytree(CHECKPOINT, folder / "tiny-gpt2")
    for command in (
        ("convert", "tiny-gpt2", "tiny-onnx", "--precision", "fp32,int8"),
        ("check", "tiny-gpt2", "tiny-onnx", "--report", "report.html"),
    ):
        subprocess.run([sys.executable, "-m", "converter", *command], cwd=folder, check=True)
    page = folder / "report.html"
    page.write_text(page.read_text(encoding="utf-8").replace("</head>", f"{SHOWN}</head>"), encoding="utf-8")
    return page


def screenshot(page: Path, out: Path) -> None:
    """Let Chromium draw a page of our own, which needs no sandbox, in its light colours."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        raise click.ClickException(f"no browser found; expected one of {', '.join(NAMES)}: install Chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={out}"]
    size = [f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SHARPNESS}"]
    subprocess.run([browser, *options, *size, page.as_uri()], check=True, capture_output=True)


def trimmed(file: Path) -> Image.Image:
    """Return a picture without what is empty below."""
    picture = Image.open(file).convert("RGB")
    empty = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    box = ImageChops.difference(picture, empty).getbbox()
    if box is None:
        raise click.ClickException(f"{file}: the browser drew nothing")
    return picture.crop((0, 0, picture.width, min(box[3] + MARGIN, picture.height)))


if __name__ == "__main__":
    main()
