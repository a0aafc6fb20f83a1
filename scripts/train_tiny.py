"""Train the checkpoint that ships with gpt2onnx, on text that comes with every Python.

    python scripts/train_tiny.py OUT

The corpus is ``pydoc_data.topics``, the language reference behind ``help()`` (PSF licence), about 465 kB in Python
3.11. Repeated paragraphs are left out. Every tenth stretch of text is held out: neither the model nor the tokenizer is
trained on it. It is written beside the checkpoint as ``heldout.txt``. Two CPU cores need about twelve minutes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import click
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from reference.config import GPT2Config
from reference.model import GPT2, Conv1D

SEED = 20190214  # the day GPT-2 was published
END = "<|endoftext|>"
STRETCH = 2_000  # characters of text that stay together, in training or held out
HOLD_OUT_EVERY = 10
CONFIG = GPT2Config(
    vocab_size=2048,
    n_positions=256,
    n_embd=192,
    n_layer=5,
    n_head=6,
    embd_pdrop=0.15,
    attn_pdrop=0.15,
    resid_pdrop=0.15,
)
BATCH = 12
WARM_UP = 40
PEAK_RATE, LAST_RATE = 2e-3, 1e-4
WEIGHT_DECAY = 0.1


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--steps", default=1000, show_default=True, help="Optimiser steps.")
def main(out: Path, steps: int) -> None:
    torch.manual_seed(SEED)
    out.mkdir(parents=True, exist_ok=True)
    train_text, heldout_text = split(corpus())
    tokenizer = train_tokenizer(train_text)
    train, heldout = (torch.tensor(tokenizer.encode(text).ids) for text in (train_text, heldout_text))
    click.echo(f"{len(train):,} tokens to train on, {len(heldout):,} held out")

    model = GPT2(CONFIG, projection=Conv1D)  # trained in the layout that Hugging Face stores
    optimise(model, train, heldout, steps)
    model.half().float()  # the loss is measured on the weights as they are saved
    loss = heldout_loss(model, heldout)
    bits = loss * len(heldout) / math.log(2)
    click.echo(f"held-out perplexity {math.exp(loss):.2f} a token, {bits / len(heldout_text.encode()):.3f} bits a byte")
    save(out, model, tokenizer, heldout_text)


def corpus() -> Iterator[str]:
    """Yield every topic in alphabetical order. Each paragraph comes once, as topics quote each other at length."""
    seen: set[str] = set()
    for name in sorted(topics):
        paragraphs = [p for p in topics[name].split("\n\n") if p not in seen]
        seen.update(paragraphs)
        if paragraphs:
            yield "\n\n".join(paragraphs).strip("\n") + "\n"


def split(documents: Iterator[str]) -> tuple[str, str]:
    """Split documents into training text and held-out text. Both hold whole paragraphs; documents end in ``END``."""
    parts: tuple[list[str], list[str]] = ([], [])
    number = 0
    for document in documents:
        stretch: list[str] = []
        for paragraph in document.split("\n\n"):
            stretch.append(paragraph)
            if sum(map(len, stretch)) >= STRETCH:
                parts[number % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1].append("\n\n".join(stretch) + "\n\n")
                number, stretch = number + 1, []
        parts[number % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1].append("\n\n".join(stretch) + END)
    return "".join(parts[0]), "".join(parts[1])


def train_tokenizer(text: str) -> Tokenizer:
    """Return a byte-level BPE tokenizer, trained as GPT-2's own was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def optimise(model: GPT2, train: torch.Tensor, heldout: torch.Tensor, steps: int) -> None:
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    began = time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps)
        starts = torch.randint(len(train) - CONFIG.n_positions, (BATCH,)).tolist()
        ids = torch.stack([train[s : s + CONFIG.n_positions] for s in starts])
        loss = model.train()(ids, labels=ids).loss
        assert loss is not None
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 49 or step == steps - 1:
            now = heldout_loss(model, heldout)
            click.echo(
                f"step {step + 1}: train {loss.item():.3f}, held out {now:.3f}, {time.monotonic() - began:.0f} s"
            )


def rate(step: int, steps: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine down."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LAST_RATE + (PEAK_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def heldout_loss(model: GPT2, ids: torch.Tensor) -> float:
    """Return the mean cross-entropy in nats a token, over windows that each begin with an empty context."""
    model.eval()
    windows = ids[: len(ids) // CONFIG.n_positions * CONFIG.n_positions].view(-1, CONFIG.n_positions)
    losses = [model(w, labels=w).loss.item() * len(w) for w in windows.split(BATCH)]
    return sum(losses) / len(windows)


def save(out: Path, model: GPT2, tokenizer: Tokenizer, heldout_text: str) -> None:
    """Write a Hugging Face folder with float16 weights."""
    weights = {
        f"transformer.{name}": weight.half().contiguous()
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    end = tokenizer.token_to_id(END)
    write_json(
        out / "config.json",
        {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": CONFIG.vocab_size,
            "n_positions": CONFIG.n_positions,
            "n_embd": CONFIG.n_embd,
            "n_layer": CONFIG.n_layer,
            "n_head": CONFIG.n_head,
            "activation_function": CONFIG.activation_function,
            "layer_norm_epsilon": CONFIG.layer_norm_epsilon,
            "bos_token_id": end,
            "eos_token_id": end,
            "dtype": "float16",
        },
    )
    write_json(out / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2TokenizerFast",
            "add_prefix_space": False,
            "bos_token": END,
            "eos_token": END,
            "unk_token": END,
            "model_max_length": CONFIG.n_positions,
        },
    )
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "heldout.txt").write_text(heldout_text, encoding="utf-8")


def write_json(file: Path, values: dict[str, object]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
