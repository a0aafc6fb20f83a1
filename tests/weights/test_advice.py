"""What a refusal advises is followed once: then the checkpoint is accounted for, to the last weight."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import converter
from converter.checkpoint.open import open_checkpoint
from converter.errors import CheckpointError, ConfigError
from converter.weights.ledger import account

State = dict[str, torch.Tensor]
Save = Callable[..., Path]
ONE = torch.ones(2)


def put(folder: Path, change: Callable[[State], State | None]) -> Path:
    """Let ``change`` alter the tensors of a folder: in place, or by giving others."""
    state = load_file(folder / "model.safetensors")
    save_file(change(state) or state, folder / "model.safetensors", {"format": "pt"})
    return folder


def refusal(folder: Path, *ignore: str) -> str:
    with pytest.raises(CheckpointError) as error:
        account(open_checkpoint(folder), ignore)
    assert "\n" not in str(error.value)
    return str(error.value)


def globs_in(message: str) -> list[str]:
    return re.findall(r"--ignore '([^']+)'", message)


def set_in_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("names", "globs"),
    [
        (["v_head.summary.weight", "v_head.summary.bias"], ["v_head.summary.*"]),
        (["transformer.h.0.attn.rotary", "transformer.h.2.attn.rotary"], ["transformer.h.*.attn.rotary"]),
        (["transformer.gate"], ["transformer.gate"]),
        (["transformer.gate", "transformer.h.1.gate"], ["transformer.gate", "transformer.h.*.gate"]),
        (["gate.weight", "value.weight"], ["gate.weight", "value.weight"]),
        (["ema_model.transformer.wte.weight", "ema_model.lm_head.weight"], ["ema_model.*"]),
    ],
)
def test_globs_that_are_advised_omit_what_is_unknown_and_nothing_else(
    save: Save, names: list[str], globs: list[str]
) -> None:
    folder = save()
    whole = account(open_checkpoint(folder)).weights
    put(folder, lambda state: state.update({name: ONE.clone() for name in names}))
    message = refusal(folder)
    assert f"tensor {sorted(names)[0]}" in message
    assert globs_in(message) == sorted(globs)
    assert account(open_checkpoint(folder), globs_in(message)).weights.keys() == whole.keys()


def test_a_value_head_beside_a_wrapped_model_is_omitted_as_advised(save: Save) -> None:
    """As TRL's AutoModelForCausalLMWithValueHead saves it."""
    folder = save()
    put(folder, lambda state: {f"pretrained_model.{n}": t for n, t in state.items()} | {"v_head.summary.bias": ONE})
    globs = globs_in(refusal(folder))
    assert globs == ["v_head.summary.bias"]
    assert account(open_checkpoint(folder), globs).weights


def test_one_of_two_models_is_chosen_as_advised(save: Save) -> None:
    folder = save()
    put(folder, lambda state: {f"{model}.{n}": t + 0 for n, t in state.items() for model in ("policy", "reference")})
    message = refusal(folder)
    assert "there are 2 models, under policy. and reference.: choose one" in message
    ledger = account(open_checkpoint(folder), globs_in(message))
    assert ledger.weights["wpe.weight"].name == "policy.transformer.wpe.weight"


@pytest.mark.parametrize(
    "rename", [lambda name: name.replace(".h.", ".layers."), lambda name: name.replace("transformer.wte", "emb")]
)
def test_where_a_weight_would_be_missing_nothing_is_advised_to_be_omitted(
    save: Save, rename: Callable[[str], str]
) -> None:
    message = refusal(put(save(), lambda state: {rename(name): tensor for name, tensor in state.items()}))
    assert "--ignore" not in message
    assert re.search(
        r"and \S+ is missing: these are weights of something else, or of a GPT-2 by names of its own", message
    )


def test_a_lora_that_is_not_merged_is_merged_as_advised(save: Save) -> None:
    peft = pytest.importorskip("peft")
    folder = save()
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert "a LoRA that is not merged lies there: save what peft's merge_and_unload() returns" in refusal(folder)
    model.merge_and_unload().save_pretrained(folder)
    assert account(open_checkpoint(folder)).weights


@pytest.mark.parametrize("tie", [True, False])
def test_a_resized_vocabulary_is_told_by_its_shape(save: Save, tie: bool) -> None:
    folder = save(tie_word_embeddings=tie)
    set_in_config(folder, vocab_size=58)
    message = refusal(folder)
    assert message.endswith("wte.weight is [61, 12]; config.json asks for [58, 12]: the vocabulary was resized, so set "
                            "vocab_size to 61 there")  # fmt: skip
    set_in_config(folder, vocab_size=61)
    assert account(open_checkpoint(folder)).weights


def test_an_embedding_and_a_head_of_two_sizes_are_no_resized_vocabulary(save: Save) -> None:
    folder = put(save(tie_word_embeddings=False), lambda state: state.update({"lm_head.weight": torch.ones(58, 12)}))
    assert refusal(folder).endswith("lm_head.weight is [58, 12]; config.json asks for [61, 12]")


def test_a_longer_context_is_told_by_its_shape(save: Save) -> None:
    folder = save()
    set_in_config(folder, n_positions=30)
    assert refusal(folder).endswith("asks for [30, 12]: set n_positions to 24 there")
    set_in_config(folder, n_positions=24)
    assert account(open_checkpoint(folder)).weights


@pytest.mark.parametrize("head", ["sequence-classification", "token-classification"])
def test_labels_that_the_config_counts_otherwise_are_told_by_their_shape(save: Save, head: str) -> None:
    folder = save(head=head, num_labels=3)
    set_in_config(folder, id2label=None, num_labels=5)
    assert refusal(folder).endswith(": set num_labels to 3 there, and let id2label name as many or none")
    set_in_config(folder, num_labels=3)
    assert account(open_checkpoint(folder)).weights


def test_projections_of_linear_are_transposed_as_advised(save: Save) -> None:
    projections = tuple(f"{module}.weight" for module in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))

    def turn(state: State) -> State:
        return {n: t.t().contiguous() if n.endswith(projections) else t for n, t in state.items()}

    folder = put(save(), turn)
    assert refusal(folder).endswith(
        ": it is transposed, as in nn.Linear, so save each projection as [in, out], as transformers' Conv1D does"
    )
    assert account(open_checkpoint(put(folder, turn))).weights


def test_empty_tensors_of_a_training_in_shards_are_told_from_a_wrong_config(save: Save) -> None:
    """DeepSpeed's script wants DeepSpeed; here the file stands for it that the script writes."""
    folder = save()
    whole = load_file(folder / "model.safetensors")
    put(folder, lambda state: {name: tensor.new_zeros(0) for name, tensor in state.items()})
    assert refusal(folder).endswith(
        ": its numbers lie in shards of DeepSpeed, so put them together with zero_to_fp32.py, which lies beside them"
    )
    (folder / "model.safetensors").unlink()
    torch.save(whole, folder / "pytorch_model.bin")
    assert account(open_checkpoint(folder)).weights


def test_pruned_heads_are_told_by_the_config_or_by_a_shape(save: Save) -> None:
    folder = save()

    def prune(state: State) -> None:  # the last of three heads of width 4 in layer 0, as transformers 4 did
        kept = torch.cat([torch.arange(8) + 12 * part for part in range(3)])
        for kind in ("weight", "bias"):
            name = f"transformer.h.0.attn.c_attn.{kind}"
            state[name] = state[name][..., kept].contiguous()
        state["transformer.h.0.attn.c_proj.weight"] = state["transformer.h.0.attn.c_proj.weight"][:8].contiguous()

    put(folder, prune)
    assert refusal(folder).endswith(
        "c_attn.weight is [12, 24]; config.json asks for [12, 36]: 2 of 3 attention heads are left, so convert the "
        "model as it was before it was pruned"
    )
    set_in_config(folder, pruned_heads={"0": [2]})
    with pytest.raises(
        ConfigError, match=r"config\.json sets pruned_heads: some .* were removed; convert the model as"
    ):
        open_checkpoint(folder)
    set_in_config(folder, pruned_heads={})
    assert account(open_checkpoint(save())).weights


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("attn.c_attn", (12, 48)),  # a head more than the config has
        ("attn.c_attn", (12, 32)),  # no whole heads
        ("attn.c_attn", (10, 24)),
        ("mlp.c_fc", (12, 12)),
    ],
)
def test_of_shapes_that_no_pruning_leaves_none_is_told(save: Save, name: str, shape: tuple[int, int]) -> None:
    folder = put(save(), lambda state: state.update({f"transformer.h.0.{name}.weight": torch.ones(shape)}))
    asked = {"attn.c_attn": [12, 36], "mlp.c_fc": [12, 20]}[name]
    assert refusal(folder).endswith(f"h.0.{name}.weight is {list(shape)}; config.json asks for {asked}")


def test_a_name_that_is_there_twice_is_omitted_once_as_advised(save: Save) -> None:
    folder = put(save(), lambda state: state.update({"module.ln_f.bias": torch.zeros(12)}))
    assert "twice: as module.ln_f.bias and as transformer.ln_f.bias; omit one of them with --ignore" in refusal(folder)
    for one in ("module.ln_f.bias", "transformer.ln_f.bias"):
        assert account(open_checkpoint(folder), [one]).weights["ln_f.bias"].name != one


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("transformer.wte", "lm_head"),
        lambda name: f"gpt2.{name}",
        lambda name: name.replace("transformer.", "_fsdp_wrapped_module.transformer.").replace(
            "attn.", "attn._orig_mod."
        ),
    ],
    ids=["only the head", "an attribute", "within a name"],
)
def test_a_graph_beside_such_weights_points_into_them_as_they_are(save: Save, rename: Callable[[str], str]) -> None:
    whole = save("whole")
    folder = put(save("wrapped"), lambda state: {rename(name): tensor for name, tensor in state.items()})
    converter.convert(folder, in_place=True)
    ids = [[5, 60, 0, 17]]
    converter.convert(whole, in_place=True)
    assert converter.load(folder).logits(ids).tobytes() == converter.load(whole).logits(ids).tobytes()
    assert converter.check(folder, folder).passed
