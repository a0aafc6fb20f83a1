"""Compute the numbers of the pages: tables and sentences from a real run and from the project's own tables, as
Markdown.
"""

from __future__ import annotations

import functools
import html
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import figures
import onnx
import torch
from run import SENTENCE, folder, ledger, report, run, shown, tokenizer
from torch import Tensor
from torch.nn import functional as F

from converter.data import HELD_OUT
from converter.runtime.opening import model_file
from converter.weights.table import TABLE, Layout, Weight, parameters
from reference.activations import gelu, gelu_tanh
from reference.config import GPT2Config
from reference.model import GPT2

__all__ = [
    "cached", "figure", "gelu_gap", "guesses", "layouts", "legs", "lens", "likeliest", "looks_at", "nodes", "operators",
    "precisions", "rounding", "sentence", "shapes", "sizes", "squares", "tensors", "tokens", "transposed",
]  # fmt: skip

PUBLISHED = {  # as published by OpenAI
    "gpt2": GPT2Config(n_embd=768, n_layer=12, n_head=12),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}
SCORED_WINDOWS = 4  # of the held-out text, each as long as the model has positions


def table(titles: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> str:
    """Return a Markdown table; ``right`` names the columns of numbers."""
    rule = ("--:" if title in right else "---" for title in titles)
    lines = (titles, tuple(rule), *rows)
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines)


def figure(name: str, caption: str) -> str:
    """Return a drawing with its caption below it."""
    plot = figures.FIGURES[name]()
    kind = "drawn wide" if plot.wide else "drawn"
    return f'<figure class="{kind}"><div class="scroll">{plot.svg}</div><figcaption>{caption}</figcaption></figure>'


def count(config: GPT2Config) -> int:
    """Return the number of parameters."""
    return sum(math.prod(shape) for _, _, shape in parameters(config))


def letters() -> dict[str, int]:
    """Return the sizes of the run, by the letters that reference/model.py gives them. No two sizes are alike."""
    config = run().config
    found = {
        "B": 1,
        "S": len(run().ids),
        "E": config.n_embd,
        "3E": 3 * config.n_embd,
        "H": config.n_head,
        "D": config.head_dim,
        "I": config.inner_dim,
        "V": config.vocab_size,
    }
    assert len(set(found.values())) == len(found), f"two sizes of the run are alike: {found}"
    return found


def sizes() -> str:
    """Return a table of the letters, with their meaning and their values in the run and in GPT-2 as published."""
    models = {"the run": run().config, **PUBLISHED}
    rows = [
        ("`B`", "texts in the batch", 1, "", ""),
        ("`S`", "tokens that are read now", len(run().ids), "", ""),
        *(
            (f"`{letter}`" if letter else "", f"{meaning}, `{key}`", *(f"{getattr(c, key):,}" for c in models.values()))
            for letter, meaning, key in (
                ("E", "width of the model", "n_embd"),
                ("H", "attention heads", "n_head"),
                ("D", "width of a head, E / H", "head_dim"),
                ("I", "width inside the MLP, 4 E", "inner_dim"),
                ("V", "tokens of the vocabulary", "vocab_size"),
                ("", "layers", "n_layer"),
                ("", "positions", "n_positions"),
            )
        ),
        ("", "parameters", *(f"{count(config):,}" for config in models.values())),
    ]
    return table(("", "what", *models), rows, right=tuple(models))


def sentence() -> str:
    """Return the sentence that the run read."""
    return SENTENCE


def tokens() -> str:
    """Return a table of the sentence, token by token."""
    pieces = zip(run().tokens, run().ids, strict=True)
    return table(
        ("position", "token", "id"), ((at, f"`{token}`", token_id) for at, (token, token_id) in enumerate(pieces))
    )


def shape_of(value: Tensor) -> tuple[str, str]:
    """Return a shape in letters and in numbers."""
    names = {size: letter for letter, size in letters().items()}
    written = ", ".join(names.get(size, str(size)) for size in value.shape)
    return f"`[{written}]`", f"`{list(value.shape)}`"


def shapes(*patterns: str) -> str:
    """Return a table of modules: their outputs in the run and their parameters, in the order in which they ran."""
    rows = []
    modules = dict(run().model.named_modules())
    for path, value in run().values.items():
        if any(fnmatchcase(path, pattern) for pattern in patterns):
            own = [f"{name} `{list(p.shape)}`" for name, p in modules[path].named_parameters(recurse=False)]
            rows.append((f"`{path}`", type(modules[path]).__name__, *shape_of(value), ", ".join(own) or "–"))
    assert rows, f"nothing ran that is called {patterns}"
    return table(("module", "class", "puts out", "in the run", "parameters, as `nn.Linear` has them"), rows)


def layouts() -> str:
    """Return a table of the two layouts, for each projection of a layer."""
    config, rows = run().config, []
    for weight in TABLE:
        if weight.layout is Layout.CONV1D:
            stored = weight.shape(config)
            rows.append(
                (
                    f"`{weight.name.format(i=0)}`",
                    f"`{symbolic(weight)}`",
                    f"`{list(stored)}`",
                    f"`{list(stored[::-1])}`",
                    "**yes**" if stored[0] == stored[1] else "no",
                )
            )
    return table(("weight", "in letters", "in the file (Conv1D)", "in `nn.Linear`", "square"), rows)


class Letter(str):
    """A size that stays a letter in ``3 * n_embd``."""

    def __rmul__(self, factor: Any) -> Letter:
        return Letter(f"{factor}{self}")


def symbolic(weight: Weight) -> str:
    """Return the shape of a weight in letters, as the table gives it."""

    class Sizes:
        vocab_size, n_embd, inner_dim = Letter("V"), Letter("E"), Letter("I")
        n_positions, num_labels = Letter("n_positions"), Letter("labels")

    sizes: Any = Sizes
    return f"[{', '.join(map(str, weight.shape(sizes)))}]"


@functools.cache
def graph() -> onnx.GraphProto:
    """Return the ONNX graph of the run's model."""
    return onnx.load(model_file(folder()), load_external_data=False).graph


def tensors() -> str:
    """Return a table of the tensors of a checkpoint, and where each goes."""
    users: dict[str, list[str]] = {}
    for node in graph().node:
        for name in node.input:
            users.setdefault(name, []).append(node.op_type)
    rows = []
    for weight in TABLE:
        if weight.needed(replace(run().config, tie_word_embeddings=True)):
            name = weight.name.format(i=0)
            rows.append(
                (
                    f"`{weight.name}`",
                    f"`{symbolic(weight)}`",
                    weight.layout,
                    "transposed (a view)" if weight.layout is Layout.CONV1D else "as it lies",
                    " and ".join(f"`{op}`" for op in users[name]),
                )
            )
    titles = (
        "tensor of the file",
        "shape",
        "layout",
        "`reference.GPT2` of `nn.Linear` takes it",
        "read in the graph by",
    )
    return table(titles, rows)


def nodes(layer: int) -> str:
    """Return a table of one layer's nodes in the graph: those that compute its values or read its weights."""
    weights, rows = {tensor.name for tensor in graph().initializer}, []
    for node in graph().node:
        own = [*node.output, *(name for name in node.input if name in weights)]
        if any(name.startswith(f"h.{layer}.") for name in own):
            fed = [name for name in node.input if name]
            rows.append((f"`{node.op_type}`", *(" ".join(f"`{n}`" for n in names) for names in (fed, node.output))))
    return table(("operator", "takes", "gives"), rows)


def operators() -> str:
    """Return how many nodes of each operator the graph has."""
    counted = Counter(node.op_type for node in graph().node)
    return f"{sum(counted.values())} nodes: " + ", ".join(f"{n} `{op}`" for op, n in counted.most_common())


def likeliest(count: int = 5) -> str:
    """Return the tokens that the model expects after the sentence."""
    return guesses(run().logits[0, -1], count)


def guesses(logits: Tensor, count: int) -> str:
    """Return the likeliest tokens of ``[V]`` logits, with their probabilities."""
    top = logits.softmax(dim=-1).topk(count)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return ", ".join(f"`{shown(token)}` {p:.1%}" for token, p in pairs)


@torch.no_grad()
def lens() -> str:
    """Return a table of what the head would say if the model ended after each layer."""
    model, values, last = run().model, run().values, run().logits[0, -1].argmax()
    streams = {"the embeddings": values["drop"]} | {
        f"layer {i}": values[f"h.{i}.mlp_residual"] for i in range(run().config.n_layer)
    }
    rows = []
    for name, x in streams.items():
        logits = model.lm_head(model.ln_f(x))[0, -1]
        rank = int((logits > logits[last]).sum()) + 1
        rows.append((f"after {name}", guesses(logits, 3), rank))
    return table(("", "three likeliest next tokens", f"rank of `{shown(int(last))}`"), rows)


@torch.no_grad()
def cached() -> str:
    """Return a sentence: how far logits with the cache are from those without."""
    ids = torch.tensor([run().ids])
    model, half = run().model, ids.size(1) // 2
    first = model(ids[:, :half])
    second = model(ids[:, half:], past_key_values=first.past_key_values)
    assert second.past_key_values[0][0].size(2) == ids.size(1)
    error = float((torch.cat((first.logits, second.logits), dim=1) - run().logits).abs().max())
    keys = list(first.past_key_values[0][0].shape), list(second.past_key_values[0][0].shape)
    return (
        f"Reading the {ids.size(1)} tokens as {half} and then {ids.size(1) - half} makes the keys of a layer "
        f"`{keys[0]}` and then `{keys[1]}`, and gives the same logits, {f'to {error:.0e}' if error else 'bit for bit'}"
    )


def looks_at(head: int, token: str) -> str:
    """Return the token at which a token of the run looks most, in a head that is drawn."""
    weights = run().values[f"h.{figures.ATTENTION_LAYER}.attn.sdpa.dropout"][0, head, run().tokens.index(token)]
    most = int(weights.argmax())
    return f"<code>{html.escape(run().tokens[most])}</code> ({weights[most]:.0%})"


def gelu_gap() -> str:
    """Return where the two GELUs differ most, and by how much."""
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    gap = (gelu(x) - gelu_tanh(x)).abs()
    at = int(gap.argmax())
    return f"{gap[at]:.1e} at x = ±{x[at].abs():.2f}"


@torch.no_grad()
def perplexity(model: GPT2) -> float:
    """Return the perplexity on the first windows of the held-out text."""
    size = model.config.n_positions
    ids = tokenizer().encode(HELD_OUT.read_text(encoding="utf-8")).ids[: size * SCORED_WINDOWS]
    rows = torch.tensor(ids).view(SCORED_WINDOWS, size)
    logits = model(rows).logits[:, :-1]
    return math.exp(float(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())))


@torch.no_grad()
def transposed() -> str:
    """Return a table of what square weights do to the model if they are loaded the wrong way round."""
    config = run().config
    weights = {name: torch.from_numpy(tensor.memmap().copy()).float() for name, tensor in ledger().weights.items()}
    square = [f"h.{i}.attn.c_proj.weight" for i in range(config.n_layer)]
    rows = []
    for what, names in {
        "as it should be": (),
        f"`{square[2]}` transposed": (square[2],),
        "every `attn.c_proj.weight` transposed": square,
    }.items():
        wrong = weights | {name: weights[name].T.contiguous() for name in names}
        model = GPT2.from_weights(config, wrong)
        rows.append((what, f"{perplexity(model):.1f}", guesses(model(torch.tensor([run().ids])).logits[0, -1], 3)))
    return table(("weights", "perplexity", "three likeliest next tokens"), rows, right=("perplexity",))


def squares() -> str:
    """Return the square weights of a model whose MLP is as wide as its stream. Their shapes say nothing."""
    config = replace(run().config, n_inner=run().config.n_embd)
    square = [w.name for w in TABLE if w.layout is Layout.CONV1D and len(set(w.shape(config))) == 1]
    return ", ".join(f"`{name.partition('h.{i}.')[2]}`" for name in square)


def rounding() -> str:
    """Return a table of the types of numbers and their precision."""
    rows = []
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        info = torch.finfo(dtype)
        step = torch.nextafter(torch.tensor(100.0, dtype=dtype), torch.tensor(200.0, dtype=dtype)).double() - 100
        rows.append((f"{dtype}".removeprefix("torch."), info.bits, f"{info.eps:.1e}", f"{step:.1e}", f"{info.max:.3g}"))
    titles = ("type", "bits", "relative step at 1", "step at 100", "largest number")
    return table(titles, rows, right=titles[1:])


def legs() -> str:
    """Return a table of the check's computations, and how far each is from the truth."""
    rows = [
        (leg.name, leg.kind, f"{leg.rms:.1e}", f"{leg.maximum:.1e}", leg.flips)
        for leg in report().legs
        if leg.kind in ("semantics", "numerics", "noise floor")
    ]
    titles = ("computation", "proves", "RMS error", "largest error", "other likeliest token")
    return table(titles, rows, right=titles[2:])


def precisions() -> str:
    """Return a table of the precisions, with their size and cost."""
    there = json.loads((folder() / "gpt2onnx.json").read_text(encoding="utf-8"))["precisions"]
    rows = []
    for name, facts in there.items():
        quality = facts["quality"]
        rows.append(
            (
                name,
                f"{facts['bytes'] / 1e6:.1f} MB",
                f"{quality['kl_mean']:.0e}",
                f"{quality['top_1']:.1%}",
                f"{quality['perplexity_ratio']:.4f}",
            )
        )
    titles = ("precision", "size", "KL, nats a token", "same likeliest token", "perplexity ratio")
    return table(titles, rows, right=titles[1:])
