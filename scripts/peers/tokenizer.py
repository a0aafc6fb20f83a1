"""Put GPT-2's tokenizer beside the checkpoint, as llama.cpp's converter needs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

TOKENIZER_FILES = ("vocab.json", "merges.txt")
TOKENIZER_HELP = "The folder of GPT-2's vocab.json and merges.txt, which llama.cpp needs; by default from the Hub."


def add_tokenizer(source: Path, tokenizer: Path | None) -> None:
    """Copy GPT-2's tokenizer beside the checkpoint, from a folder or from the Hub. llama.cpp's converter needs it."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            continue
        try:
            shutil.copyfile(tokenizer / name if tokenizer else hub_file(name), source / name)
        except OSError as error:
            click.echo(f"{name} cannot be copied ({type(error).__name__}); give it with --tokenizer DIR", err=True)


def hub_file(name: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download("openai-community/gpt2", name)
