"""The model card: a folder's README.md, written from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.folder import snippets
from converter.folder.clients import UNSUPPORTED
from converter.folder.manifest import OUTPUTS
from converter.texts import code, markdown
from converter.weights.precisions import PRECISIONS
from reference.config import GPT2Config

CARD = """\
---
library_name: onnx
pipeline_tag: {task}
tags: [gpt2, onnx]
---
# {title} for ONNX

GPT-2 with {parameters:,} parameters, converted from {name} by gpt2onnx {version}: {n_layer} layers, {n_head} heads,
width {n_embd}, {n_positions} positions, {vocab_size:,} tokens; opset {opset}, {operators}.

{files}

## Run it

{usage}

## Check it

```bash
gpt2onnx check SOURCE .
```

compares it with the source, Hugging Face transformers and a float64 reference.
"""

GENERATE = """\
### gpt2onnx

```bash
gpt2onnx generate . "Once upon a time"
```

```python
from converter import load

for text in load(".").generate(["Once upon a time"], max_new_tokens=40).texts:
    print(text)
```

Any ONNX Runtime (1.23 or newer for opset 23) runs the graph itself: it takes `input_ids`, `attention_mask`,
`position_ids` and the cache `past_key_values.{i}.key|value` (empty at first), and gives `logits` and the longer
cache `present.{i}.key|value`. Pad batches on the left."""

RUN = """\
### gpt2onnx run

```bash
gpt2onnx run . @arguments@
```

```python
from converter import load_head

print(load_head(".").run([@text@]))
```

Any ONNX Runtime (1.23 or newer for opset 23) runs the graph itself: it takes `input_ids` and `attention_mask`, and
gives @gives@. Padding changes nothing, on either side."""

FILES = ("precision", "graph", "weights", "size", "what they are")

# What a check leaves of a precision: keys of the manifest's ``quality``, and what the table calls them.
QUALITY = (
    ("kl_mean", "KL, nats a token"),
    ("top_1", "same next token"),
    ("dp_rms", "Δp, RMS"),
    ("perplexity_ratio", "perplexity ratio"),
)
QUALITY_SAYS = (
    "Measured by `gpt2onnx check` against the float64 truth: KL divergence, how often the likeliest token is the\n"
    "same, by how much the probability of the next token differs, and perplexity over the truth's with its standard\n"
    "error. A ratio within two standard errors of 1 says that no difference was seen. The text: {on}."
)

TEXT = ('"A text"', '"A text"')
ANSWER = (
    '"A text that holds the answer" --question "What is asked?"',
    '("What is asked?", "A text that holds the answer")',
)
CHOICES = ('"One ending" "Another ending"', '("One ending", "Another ending")')

# The task by its name on the Hub, what to run, and what the graph gives.
TASKS: dict[str, tuple[str, tuple[str, str], str]] = {
    "base": ("feature-extraction", TEXT, "`last_hidden_state`"),
    "sequence-classification": ("text-classification", TEXT, "`logits`, one row a text"),
    "token-classification": ("token-classification", TEXT, "`logits`, one row a token"),
    "question-answering": ("question-answering", ANSWER, "`start_logits` and `end_logits`"),
    "double-heads": ("multiple-choice", CHOICES, "`mc_logits` for choices `[batch, choices, tokens]`"),
}


OPERATORS = {
    False: "standard operators only",
    True: "standard operators; for whole numbers\nONNX Runtime's own MatMulNBits",
}


def render(values: Mapping[str, Any], config: GPT2Config) -> str:
    """Return a folder's README.md, made from its manifest. It tells the quality of each precision that was checked."""
    usages, task = [GENERATE, snippets.render(values, config)], "text-generation"
    if config.head in TASKS:
        named, (arguments, text), gives = TASKS[config.head]
        run = RUN.replace("@arguments@", arguments).replace("@text@", text).replace("@gives@", gives)
        usages, task = ([*usages, run], task) if config.head_spec.predicts else ([run], named)
    source = values["source"]
    name = source["name"] + (f" + {source['adapter']}" if "adapter" in source else "")
    return CARD.format(
        task=task,
        usage="\n\n".join(usages),
        title=markdown(name),
        name=code(name),
        version=values["versions"]["gpt2onnx"],
        parameters=values["parameters"],
        opset=values["opset"],
        operators=OPERATORS[any(facts.get("quantized") for facts in values["precisions"].values())],
        files=files_table(values),
        **{key: getattr(config, key) for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")},
    )


def files_table(values: Mapping[str, Any]) -> str:
    """Return a table of the precisions: their files, what their weights are, and what was measured."""
    rows = [(*FILES, *(title for _, title in QUALITY))]
    rows.append(("---",) * len(rows[0]))
    for name, facts in values["precisions"].items():
        quality = facts.get("quality", {})
        measured = (_figure(quality.get(key)) + _error(quality.get(f"{key}_error")) for key, _ in QUALITY)
        graphs = ", ".join(f"`{file}`" for file in facts["heads"].values())
        rows.append(
            (
                name,
                graphs,
                code(facts["data"]).replace("|", r"\|"),
                _megabytes(facts["bytes"]),
                _weights(name, facts, values),
                *measured,
            )
        )
    if not any("quality" in facts for facts in values["precisions"].values()):
        rows = [row[: len(FILES)] for row in rows]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    measured_too = [QUALITY_SAYS.format(on=_measured_on(values))] if len(rows[0]) > len(FILES) else []
    return "\n\n".join([table, *measured_too, *inside(values), *unsupported(values)])


def inside(values: Mapping[str, Any]) -> list[str]:
    """Return a paragraph on what the graphs return beside their answer; empty if they return nothing else."""
    asked = {name: facts[OUTPUTS] for name, facts in values["precisions"].items() if OUTPUTS in facts}
    sentences = [f"The {name} graph also returns {', '.join(f'`{each}`' for each in asked[name])}." for name in asked]
    how = "`gpt2onnx run` writes them into a file with `--save inside.npz`."
    return ["\n".join([*sentences, how])] if sentences else []


def unsupported(values: Mapping[str, Any]) -> list[str]:
    """Return a paragraph on where the folder's precisions do not run; empty if they run everywhere."""
    sentences = [
        f"{name} does not run in {client}: {why}."
        for (client, name), why in UNSUPPORTED.items()
        if name in values["precisions"]
    ]
    return ["\n".join(sentences)] if sentences else []


def _measured_on(values: Mapping[str, Any]) -> str:
    """Say on which text, and on how many tokens, each precision was measured."""
    found: dict[str, list[str]] = {}
    for name, facts in values["precisions"].items():
        if quality := facts.get("quality"):
            what = f"{markdown(quality.get('text', 'an unknown text'))}, {quality.get('scored', 0)} tokens"
            found.setdefault(what, []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{what} ({', '.join(names)})" for what, names in found.items())


def _error(value: float | None) -> str:
    """Return a standard error, as it stands behind its figure."""
    return "" if value is None or value != value else f" ± {value:.1g}"


def _weights(name: str, facts: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Say what became of the source's weights."""
    said = PRECISIONS[name].said
    widened = sorted({row["dtype"] for row in values["ledger"] if row["role"] == "used"} - {"float32"})
    if name == "fp32" and widened:
        said += f" (widened from {' and '.join(widened)}, which is exact)"
    return said + (f"; {facts['quantized']:.1%} of the parameters" if "quantized" in facts else "")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}" if value < 0.01 else f"{value:.4g}"
