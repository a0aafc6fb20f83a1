"""The programs on the model card that open a model folder in each client. They are run in the folder itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from converter.folder.clients import runs
from converter.weights.precisions import PRECISIONS
from reference.config import GPT2Config

NEW_TOKENS = 40


@dataclass(frozen=True)
class Snippet:
    """The program of one client.

    Attributes:
        client: its heading, and its name in ``clients.UNSUPPORTED``.
        install: what it needs.
        text: with @name@ where models differ.
        in_place: whether it also runs where the graph lies beside the source's weights.
    """

    client: str
    install: str
    text: str
    in_place: bool = True


OPTIMUM = """\
```python
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer, pipeline

model = ORTModelForCausalLM.from_pretrained("."@file_name@)
write = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained("."))
print(write("Once upon a time", max_new_tokens=@tokens@, do_sample=False)[0]["generated_text"])
```"""

TRANSFORMERS = """\
```python
from transformers import pipeline

write = pipeline("text-generation", ".")
print(write("Once upon a time", max_new_tokens=@tokens@, do_sample=False)[0]["generated_text"])
```"""

GENAI = """\
```python
import onnxruntime_genai as genai

model = genai.Model(".")
tokenizer = genai.Tokenizer(model)
prompt = tokenizer.encode("Once upon a time")
options = genai.GeneratorParams(model)
options.set_search_options(max_length=len(prompt) + @tokens@, do_sample=False)
generator = genai.Generator(model, options)
generator.append_tokens(prompt)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```"""

OPENVINO = """\
```python
import numpy as np
import openvino
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
model = openvino.Core().compile_model("@model@", "CPU")
caches = [port.any_name for port in model.inputs if port.any_name.startswith("past")]
cache = {name: np.zeros((1, @n_head@, 0, @head_dim@), @cache_type@) for name in caches}
new, ids = tokenizer.encode("Once upon a time").ids, []
for _ in range(@tokens@):
    positions = np.arange(len(ids), len(ids) + len(new))[None]
    ids += new
    mask = np.ones((1, len(ids)), np.int64)
    outputs = model({"input_ids": np.array([new]), "attention_mask": mask, "position_ids": positions, **cache})
    cache = {name: outputs[name.replace("past_key_values", "present")] for name in caches}
    new = [int(outputs["logits"][0, -1].argmax())]
print(tokenizer.decode(ids + new))
```"""

TRANSFORMERS_JS = """\
```js
import { env, pipeline } from "@huggingface/transformers";

env.allowLocalModels = true;
env.localModelPath = "."; // from the Hub, the model's name is all that is needed
const write = await pipeline("text-generation", ".", { dtype: "@js_dtype@" });
const [{ generated_text }] = await write("Once upon a time", { max_new_tokens: @tokens@, do_sample: false });
console.log(generated_text);
```"""

SNIPPETS = (
    Snippet("Optimum", "pip install optimum-onnx[onnxruntime]", OPTIMUM),
    Snippet("onnxruntime-genai", "pip install onnxruntime-genai", GENAI),
    Snippet("OpenVINO", "pip install openvino tokenizers", OPENVINO),
    Snippet("transformers", "pip install transformers torch", TRANSFORMERS),
    Snippet("transformers.js", "npm install @huggingface/transformers", TRANSFORMERS_JS, in_place=False),
)


def render(values: Mapping[str, Any], config: GPT2Config) -> str:
    """Return the sections of the clients that run one of the folder's precisions. Each uses the first that it runs.

    Args:
        values: the folder's manifest.
    """
    there, in_place = values["precisions"], not values["model"].startswith("onnx/")
    sections = []
    for snippet in SNIPPETS:
        name = next((name for name in there if runs(snippet.client, name)), None)
        if name is None or (in_place and not snippet.in_place):
            continue
        model, precision = there[name]["model"], PRECISIONS[name]
        text, filled = (
            snippet.text,
            {
                "model": model,
                "file_name": "" if name == "fp32" else f', file_name="{PurePosixPath(model).name}"',
                "js_dtype": precision.js_dtype,
                "cache_type": f"np.{precision.dtype}",
                "tokens": min(NEW_TOKENS, config.n_positions // 2),
                "n_head": config.n_head,
                "head_dim": config.head_dim,
            },
        )
        for key, value in filled.items():
            text = text.replace(f"@{key}@", str(value))
        sections.append(f"### {snippet.client}\n\n`{snippet.install}`\n\n{text}")
    return "\n\n".join(sections)
