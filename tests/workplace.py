"""Everything that an example or a page reads, by the name that it has there.

A Hub id means a folder of that name, as what exists on this machine is never looked up on the Hub. In place of a model
of a real size there are small random ones, with the tokenizer of the bundled checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from converter import check, convert
from converter.checkpoint.folder import companions
from converter.data import CHECKPOINT
from reference.config import GPT2Config
from reference.model import GPT2
from tests.checkpoint.writers.lora import MODULES, pairs
from tests.checkpoint.writers.lora import write as write_adapter
from tests.disguises import disguise, renamed, transposed_weights

Head = Callable[..., torch.nn.Module]

SIZES = {"vocab_size": 2048, "n_positions": 96, "n_embd": 32, "n_layer": 3, "n_head": 4}

SOURCES = ("openai-community/gpt2", "user/model@main", "my-gpt2")
CONVERTED = {"openai-community/gpt2": "gpt2-onnx", "my-gpt2": "my-gpt2-onnx"}
HEADS = {"classifier-onnx": "sequence-classification", "qa-onnx": "question-answering"}
TEMPLATE = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"  # DialoGPT's
TEXT = "The following statement is executed by the interpreter. A name is bound to an object. " * 4


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory, head_model: Head) -> Path:
    """Everything that an example reads, by the name that it has there."""
    here = tmp_path_factory.mktemp("things")

    def save(name: str, head: str = "lm", seed: int = 0) -> Path:
        head_model(head, seed, n_inner=72, **SIZES).save_pretrained(here / name)  # type: ignore[operator]
        for file in companions(CHECKPOINT):
            shutil.copy(CHECKPOINT / file, here / name)
        return here / name

    for seed, name in enumerate(SOURCES):
        save(name, seed=seed)
    for name, out in CONVERTED.items():
        convert(here / name, here / out, precision="fp32,int8")
    check(here / SOURCES[0], here / "gpt2-onnx")
    convert(here / "my-gpt2", here / "inside-onnx", outputs="attentions")
    disguise(here / "my-gpt2-onnx", here / "their-model.onnx", transposed_weights, renamed)
    for out, head in HEADS.items():
        convert(save(f"{head}-source", head), here / out)
    templates = save("chatty-source") / "additional_chat_templates"
    templates.mkdir()
    for file in (templates / "tool_use.jinja", here / "chatty-source" / "chat_template.jinja"):
        file.write_text(TEMPLATE)
    convert(here / "chatty-source", here / "chatty-onnx")
    write_adapter(here / "my-lora", pairs(MODULES))  # whose sizes are those of SIZES
    write_nanogpt(here / "nanogpt" / "ckpt.pt")
    for name in ("my.txt", "held-out.txt", "code.py"):
        (here / name).write_text(TEXT, encoding="utf-8")
    (here / "documents.jsonl").write_text(2 * (json.dumps({"text": TEXT}) + "\n"), encoding="utf-8")
    (here / "prompts.jsonl").write_text(2 * (json.dumps({"prompt": "The following", "id": 7}) + "\n"), encoding="utf-8")
    (here / "replicas.yaml").write_text("num_replicas: 1\n", encoding="utf-8")
    return here


def write_nanogpt(file: Path) -> None:
    model = GPT2(GPT2Config(**SIZES))
    state = {name if name.startswith("lm_head") else f"transformer.{name}": w for name, w in model.state_dict().items()}
    sizes = {key: value for key, value in SIZES.items() if key != "n_positions"}
    file.parent.mkdir()
    torch.save({"model": state, "model_args": sizes | {"block_size": SIZES["n_positions"], "bias": True}}, file)
