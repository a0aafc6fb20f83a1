"""The exports of other programs, run: whatever they take, they answer as Hugging Face does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from converter import convert, load
from converter.errors import ModelFolderError, PromptError
from converter.runtime.session import Model
from tests import disguises
from tests.disguises import disguise

Save = Callable[..., Path]
Export = Callable[..., Model]

PROMPTS = [[3, 5, 7], [1, 2, 3, 4, 5, 6, 8], [9]]
NEW = 5

# What others write, by what they take.
INTERFACES = {
    "with a cache": (),
    "int32": (disguises.int32,),
    "keys and values joined": (disguises.joined_cache,),
    "merged": (disguises.merged,),
    "last logits only": (disguises.last_only,),
    "no mask": (disguises.without_mask,),
    "no positions": (disguises.own_positions,),
    "names that say nothing": (disguises.renamed,),
    "other names": (
        disguises.called(input_ids="tokens", attention_mask="my_mask", position_ids="pos", logits="scores"),
    ),
}


@pytest.fixture
def source(save: Save) -> Path:
    return save(n_layer=2, eos_token_id=60)  # which these prompts do not come to


@pytest.fixture
def export(source: Path, tmp_path: Path) -> Export:
    """``export(*edits)``: the source as somebody else exports it, opened."""
    convert(source, tmp_path / "ours")

    def make(*edits: disguises.Edit) -> Model:
        file = disguise(tmp_path / "ours", tmp_path / "theirs" / "model.onnx", *edits)
        (file.parent / "config.json").write_bytes((source / "config.json").read_bytes())
        return load(file.parent)

    return make


def huggingface(source: Path) -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel.from_pretrained(source, dtype=torch.float32).eval()


@torch.no_grad()
def greedy(source: Path, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(NEW):
        ids.append(int(huggingface(source)(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("edits", INTERFACES.values(), ids=INTERFACES)
def test_prompts_of_several_lengths_are_continued_as_each_alone(
    export: Export, source: Path, edits: tuple[disguises.Edit, ...]
) -> None:
    found = export(*edits).generate(PROMPTS, max_new_tokens=NEW, generation_config=False).new_ids
    assert found == [greedy(source, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("edits", INTERFACES.values(), ids=INTERFACES)
def test_a_text_is_scored_as_hugging_face_scores_it(
    export: Export, source: Path, edits: tuple[disguises.Edit, ...]
) -> None:
    [score] = export(*edits).score([PROMPTS[1]])
    with torch.no_grad():
        log_probs = huggingface(source)(torch.tensor([PROMPTS[1]])).logits[0].log_softmax(-1).numpy()
    wanted = [log_probs[at, token] for at, token in enumerate(PROMPTS[1][1:])]
    assert np.allclose(score.log_probs[1:], wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["with a cache", "no mask", "keys and values joined"])
def test_beams_and_speculation_give_what_they_give_for_a_folder_of_ours(
    export: Export, tmp_path: Path, name: str
) -> None:
    theirs = export(*INTERFACES[name])
    ours = load(tmp_path / "ours")
    for options in ({"beams": 3, "best": 2}, {"speculate": 3}, {"temperature": 1.0, "seed": 4, "best": 3}):
        asked = {"max_new_tokens": NEW, "generation_config": False, **options}
        assert theirs.generate(PROMPTS[:1], **asked).new_ids == ours.generate(PROMPTS[:1], **asked).new_ids


def test_a_file_of_a_fixed_size_reads_what_fits_and_refuses_more(export: Export, source: Path) -> None:
    def fixed(graph: disguises.GraphProto) -> None:
        """Five tokens of one row at a time, and no cache, as an export without dynamic axes."""
        for value in graph.input:
            dims = value.type.tensor_type.shape.dim
            if value.name.startswith(disguises.CACHE):
                dims[0].dim_value, dims[2].dim_value = 1, 0
                shape = [dim.dim_value for dim in dims]
                tensor = disguises.numpy_helper.from_array(np.zeros(shape, np.float32), value.name)
                graph.initializer.append(tensor)
            else:
                dims[0].dim_value, dims[1].dim_value = 1, 5
        disguises._keep(graph.input, lambda value: not value.name.startswith(disguises.CACHE))
        disguises._keep(graph.output, lambda value: value.name == "logits")

    model = export(fixed)
    found = model.generate(PROMPTS[0], max_new_tokens=2, generation_config=False).new_ids[0]
    assert found == greedy(source, PROMPTS[0])[:2]
    with pytest.raises(PromptError, match="takes 5 tokens at most; there are 7"):
        model.generate(PROMPTS[1], max_new_tokens=1, generation_config=False)


def test_a_cache_of_other_heads_is_another_model(export: Export, tmp_path: Path, source: Path) -> None:
    model = export()
    config = (model.folder / "config.json").read_text()
    (model.folder / "config.json").write_text(config.replace('"n_head": 3', '"n_head": 2'))
    with pytest.raises(ModelFolderError, match="is another model: its cache"):
        load(model.folder)
