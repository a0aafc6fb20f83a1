"""Every tensor of a source is accounted for by its name, and nothing else about it decides."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model

from converter.checkpoint.names import canonical
from converter.checkpoint.open import open_checkpoint
from converter.checkpoint.options import SourceOptions
from converter.checkpoint.source import Checkpoint
from converter.checkpoint.tensor import CHUNK_BYTES, LazyTensor
from converter.errors import CheckpointError, ConfigError
from converter.weights.ledger import Role, account, same_bytes
from converter.weights.table import Layout, parameters
from reference.config import GPT2Config
from reference.head import ASKED

State = dict[str, torch.Tensor]
Save = Callable[..., Path]
Alter = Callable[..., Checkpoint]
SHAPES = [
    {},
    {"n_inner": None, "n_layer": 1},
    {"activation_function": "prelu"},
    {"tie_word_embeddings": False},
    {"activation_function": "prelu", "tie_word_embeddings": False, "n_layer": 12, "n_head": 4},
    {"n_inner": 12, "scale_attn_by_inverse_layer_idx": True},
]


@pytest.fixture
def alter(save: Callable[..., Path]) -> Alter:
    """``alter(change, **config)`` lets ``change`` alter the tensors of a random checkpoint and opens it.

    ``change`` alters the dictionary in place, or returns another; ``as_bin`` writes with torch.save.
    """

    def altered(
        change: Callable[[State], State | None] = lambda state: None, *, as_bin: bool = False, **config: Any
    ) -> Checkpoint:
        folder = save(**config)
        state = load_file(folder / "model.safetensors")
        state = change(state) or state
        if as_bin:
            (folder / "model.safetensors").unlink()
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors", {"format": "pt"})
        return open_checkpoint(folder)

    return altered


def renamed(rename: Callable[[str], str | None]) -> Callable[[State], State]:
    return lambda state: {rename(name) or name: tensor for name, tensor in state.items()}


def refused(checkpoint: Checkpoint, message: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=message):
        account(checkpoint, **options)


def expected_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, _, shape in parameters(checkpoint.config)}


def roles(checkpoint: Checkpoint, **options: Any) -> dict[str, Role]:
    return {entry.tensor.name: entry.role for entry in account(checkpoint, **options).entries}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_table_is_transformers_own_list_of_parameters(shape: dict[str, Any]) -> None:
    values = {"vocab_size": 61, "n_positions": 24, "n_embd": 12, "n_layer": 3, "n_head": 3, "n_inner": 20} | shape
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values))
    theirs = {canonical(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if shape.get("tie_word_embeddings", True):
        theirs.pop("lm_head.weight")
    assert {name: shape for name, _, shape in parameters(GPT2Config(**values))} == theirs


def test_layouts_are_those_of_transformers_modules() -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=6, n_head=2, vocab_size=9))
    kinds = {
        torch.nn.Embedding: Layout.EMBEDDING, transformers.pytorch_utils.Conv1D: Layout.CONV1D,
        torch.nn.Linear: Layout.LINEAR, torch.nn.LayerNorm: Layout.VECTOR,
    }  # fmt: skip
    for name, layout, _ in parameters(GPT2Config(n_layer=2, n_embd=6, n_head=2, tie_word_embeddings=False)):
        module, _, kind = name.rpartition(".")
        expected = kinds[type(model.get_submodule(module if module == "lm_head" else f"transformer.{module}"))]
        assert layout == (Layout.VECTOR if kind == "bias" else expected), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_save_pretrained_wrote_is_used_to_the_last_tensor(alter: Alter, shape: dict[str, Any]) -> None:
    checkpoint = alter(**shape)
    ledger = account(checkpoint)
    assert list(ledger.weights) == [name for name, _, _ in parameters(checkpoint.config)]
    assert {entry.role for entry in ledger.entries} == {Role.USED}
    assert [entry.tensor for entry in ledger.entries] == list(checkpoint.tensors.values())
    assert (ledger.config, ledger.warnings) == (checkpoint.config, ())
    assert ledger.parameters == transformers.GPT2LMHeadModel.from_pretrained(checkpoint.folder).num_parameters()


def test_the_weights_are_the_sources_own_under_canonical_names(alter: Alter) -> None:
    weights = account(alter()).weights
    for name, tensor in weights.items():
        assert tensor.name == f"transformer.{name}"


WRAPPERS = [
    ("module.", "_orig_mod."), ("_orig_mod.", "module.", "model."), ("model.", "transformer."), ("_module.",),
    ("pretrained_model.",), ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module."), ("_forward_module.", "model."),
    ("base_model.", "model."), ("gpt2.",), ("module.", "net.", "_orig_mod.", "lm."),
]  # fmt: skip


@pytest.mark.parametrize("order", WRAPPERS, ids="".join)
def test_a_wrapped_checkpoint_is_accounted_for_like_a_bare_one(alter: Alter, order: tuple[str, ...]) -> None:
    ledger = account(alter(renamed(lambda name: "".join(order) + canonical(name)), n_layer=1))
    assert {entry.name for entry in ledger.entries} == set(ledger.weights)
    assert ledger.weights["wpe.weight"].name == "".join(order) + "wpe.weight"


def untied(state: State, change: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> None:
    state["lm_head.weight"] = change(state["transformer.wte.weight"])


@pytest.mark.parametrize("as_bin", [False, True])
@pytest.mark.parametrize("tie", [False, True])
def test_a_head_with_the_bytes_of_wte_is_tied_whatever_the_config_says(alter: Alter, tie: bool, as_bin: bool) -> None:
    checkpoint = alter(untied, as_bin=as_bin, tie_word_embeddings=tie)
    ledger = account(checkpoint)
    assert ledger.config.tie_word_embeddings is True
    assert "lm_head.weight" not in ledger.weights
    assert {e.tensor.name for e in ledger.entries if e.role == Role.TIED} == {"lm_head.weight"}
    assert ledger.warnings == ()
    assert ledger.parameters == sum(
        tensor.size for name, tensor in checkpoint.tensors.items() if name != "lm_head.weight"
    )


def test_a_head_that_shares_wtes_storage_is_tied(alter: Alter) -> None:
    checkpoint = alter(lambda state: untied(state, lambda wte: wte), as_bin=True)
    assert checkpoint.tensors["lm_head.weight"].offset == checkpoint.tensors["transformer.wte.weight"].offset
    assert roles(checkpoint)["lm_head.weight"] == Role.TIED


def last_differs(wte: torch.Tensor) -> torch.Tensor:
    head = wte.clone()
    head[-1, -1] += 1
    return head


def sign_differs(wte: torch.Tensor) -> torch.Tensor:
    head = wte.clone()
    wte[0, 0], head[0, 0] = 0.0, -0.0
    return head


@pytest.mark.parametrize("change", [last_differs, sign_differs, lambda wte: wte.half()], ids=["last", "sign", "half"])
def test_a_head_of_its_own_is_used_with_a_warning(alter: Alter, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    checkpoint = alter(lambda state: untied(state, change))
    assert checkpoint.config.tie_word_embeddings
    ledger = account(checkpoint)
    assert ledger.config.tie_word_embeddings is False
    assert ledger.weights["lm_head.weight"] == checkpoint.tensors["lm_head.weight"]
    assert len(ledger.warnings) == 1
    assert re.search(
        r"config\.json ties lm_head\.weight to wte\.weight, .* different lm_head\.weight", ledger.warnings[0]
    )


def test_a_head_of_its_own_that_the_config_announces_is_no_warning(alter: Alter) -> None:
    ledger = account(alter(lambda state: untied(state, last_differs), tie_word_embeddings=False))
    assert (ledger.config.tie_word_embeddings, ledger.warnings) == (False, ())
    assert "lm_head.weight" in ledger.weights


@pytest.mark.parametrize("name", ["lm_head.weight", "lm_head.decoder.weight", "module.lm_head.weight"])
def test_a_head_alone_is_the_embedding_too_if_the_config_ties_them(alter: Alter, name: str) -> None:
    whole = account(alter())
    ledger = account(alter(renamed({"transformer.wte.weight": name}.get), name="head-alone"))
    assert list(ledger.weights) == list(whole.weights)
    assert same_bytes(ledger.weights["wte.weight"], whole.weights["wte.weight"])
    assert (ledger.config, ledger.warnings) == (whole.config, ())
    assert [(e.name, e.layout, e.role) for e in ledger.entries if e.tensor.name == name] == [
        ("wte.weight", Layout.EMBEDDING, Role.USED)
    ]


def test_what_safetensors_itself_saves_of_a_tied_model_is_what_transformers_saves(
    save: Save, head_model: Callable[..., Any]
) -> None:
    whole, folder = save(), save("by-safetensors")
    save_model(head_model("lm"), folder / "model.safetensors", {"format": "pt"})
    assert "transformer.wte.weight" not in load_file(folder / "model.safetensors")
    found, expected = (account(open_checkpoint(path)).weights for path in (folder, whole))
    assert {n: t.memmap().tobytes() for n, t in found.items()} == {n: t.memmap().tobytes() for n, t in expected.items()}


def test_a_head_alone_is_no_embedding_of_a_config_that_unties_them(alter: Alter) -> None:
    checkpoint = alter(renamed({"transformer.wte.weight": "lm_head.weight"}.get), tie_word_embeddings=True)
    checkpoint = with_config(checkpoint, tie_word_embeddings=False)
    refused(
        checkpoint, r"has no tensor wte\.weight .*; if lm_head\.weight is both, set tie_word_embeddings to true there"
    )
    assert account(with_config(checkpoint, tie_word_embeddings=True)).weights


def test_causal_masks_are_set_aside(alter: Alter) -> None:
    def add(state: State) -> None:
        for i in range(3):
            state[f"transformer.h.{i}.attn.bias"] = torch.ones(24, 24).tril().bool()[None, None]
            state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)

    checkpoint = alter(add)
    found = {name for name, role in roles(checkpoint).items() if role == Role.BUFFER}
    assert found == {f"transformer.h.{i}.attn.bias" for i in range(3)} | {f"h.{i}.attn.masked_bias" for i in range(3)}
    assert not found & {tensor.name for tensor in account(checkpoint).weights.values()}


@pytest.mark.parametrize(
    "name", ["h.attn.bias", "h.0.attn.bias.x", "h.00.attn.bias", "h.-1.attn.bias", "h.0.attn.Bias", "xh.0.attn.bias"]
)
def test_what_is_only_like_a_causal_mask_is_not_set_aside(alter: Alter, name: str) -> None:
    refused(
        alter(lambda state: state.update({name: torch.ones(1)})), re.escape(f"tensor {name} is not part of a GPT-2")
    )


@pytest.mark.parametrize(
    ("globs", "ignored"),
    [
        (["gate.*"], {"gate.weight", "gate.bias"}),
        (["module.v_head.*", "gate.*"], {"module.v_head.bias", "gate.weight", "gate.bias"}),
        (["v_head.*"], {"module.v_head.bias"}),  # the canonical name
        (["*.bias"], None),
        (["*gate*", "v_head.????"], {"gate.weight", "gate.bias", "module.v_head.bias"}),
        (["Gate.*"], set()),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # the same in every process
)
def test_globs_ignore_by_the_name_there_and_by_the_canonical_one(
    alter: Alter, globs: list[str], ignored: set[str] | None
) -> None:
    surplus = {"gate.weight": torch.ones(2), "gate.bias": torch.ones(1), "module.v_head.bias": torch.ones(3)}
    checkpoint = alter(lambda state: state.update(surplus))
    if ignored is None:
        return refused(checkpoint, r"tensor gate\.weight is not part of a GPT-2", ignore=globs)
    left = [name for name in checkpoint.tensors if name in surplus and name not in ignored]
    if left:
        return refused(checkpoint, rf"tensor {re.escape(left[0])}.* is not part of a GPT-2", ignore=globs)
    assert {name for name, role in roles(checkpoint, ignore=globs).items() if role == Role.IGNORED} == ignored
    return None


def test_a_needed_tensor_that_is_ignored_is_missing(alter: Alter) -> None:
    refused(alter(), r"has no tensor wpe\.weight", ignore=["wpe.*"])


def test_an_unknown_tensor_is_named_with_the_mend(alter: Alter) -> None:
    checkpoint = alter(lambda state: state.update({"h.1.crossattention.bias": torch.ones(2)}))
    refused(
        checkpoint,
        r"source/model\.safetensors: tensor h\.1\.crossattention\.bias is not part of a GPT-2; "
        r"omit it with --ignore 'h\.1\.crossattention\.bias'",
    )
    assert account(checkpoint, ignore=["h.1.crossattention.bias"]).weights


def test_several_unknown_tensors_are_counted(alter: Alter) -> None:
    checkpoint = alter(lambda state: state.update({f"adapter.{i}": torch.ones(1) for i in range(4)}))
    refused(
        checkpoint,
        r"tensor adapter\.0 \(also adapter\.1, .*\) is not part of a GPT-2; omit it with --ignore 'adapter\.\*'",
    )


@pytest.mark.parametrize("name", ["wte.weight", "h.2.mlp.c_fc.bias", "h.0.ln_1.weight", "ln_f.bias"])
def test_a_missing_tensor_is_named_with_its_shape(alter: Alter, name: str) -> None:
    checkpoint = alter(lambda state: {n: t for n, t in state.items() if canonical(n) != name})
    shape = expected_shapes(checkpoint)[name]
    refused(
        checkpoint,
        re.escape(f"source/model.safetensors has no tensor {name} {list(shape)}, which config.json asks for; the ")
        + r"checkpoint is incomplete or config\.json is not its own$",
    )


def test_beside_a_head_of_its_own_only_a_missing_embedding_is_tied(alter: Alter) -> None:
    def without(name: str) -> Checkpoint:
        return alter(lambda state: {n: t for n, t in state.items() if canonical(n) != name}, tie_word_embeddings=False)

    refused(without("wte.weight"), r"; if lm_head\.weight is both, set tie_word_embeddings to true there$")
    refused(without("wpe.weight"), r"; the checkpoint is incomplete or config\.json is not its own$")


def test_a_head_that_the_config_announces_and_the_source_lacks_is_missing(alter: Alter) -> None:
    checkpoint = alter(
        lambda state: {n: t for n, t in state.items() if n != "lm_head.weight"}, tie_word_embeddings=False
    )
    refused(checkpoint, r"has no tensor lm_head\.weight \[61, 12\]")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("wte.weight", (60, 12)), ("h.1.mlp.c_fc.weight", (20, 12)), ("h.0.attn.c_attn.bias", (36, 1)), ("ln_f.bias", ())],
)
def test_a_misshapen_tensor_is_named_with_both_shapes(alter: Alter, name: str, shape: tuple[int, ...]) -> None:
    checkpoint = alter(lambda state: state.update({f"transformer.{name}": torch.ones(shape)}))
    expected = expected_shapes(checkpoint)[name]
    message = (
        f"source/model.safetensors: tensor transformer.{name} is {list(shape)}; config.json asks for {list(expected)}"
    )
    refused(checkpoint, re.escape(message))


def test_a_tensor_that_is_there_twice_is_refused_with_both_names(alter: Alter) -> None:
    checkpoint = alter(lambda state: state.update({"h.1.ln_1.bias": torch.ones(12)}))
    refused(
        checkpoint, r"source holds h\.1\.ln_1\.bias twice: as h\.1\.ln_1\.bias and as transformer\.h\.1\.ln_1\.bias"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.bool], ids=str)
def test_a_weight_of_an_unusable_type_is_refused(alter: Alter, dtype: torch.dtype) -> None:
    name = "transformer.h.2.attn.c_proj.weight"
    found = str(dtype).removeprefix("torch.")
    refused(
        alter(lambda state: state.update({name: state[name].to(dtype)})),
        rf"model\.safetensors: tensor {re.escape(name)} is {found}; expected float32, float16, bfloat16: save",
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_taken_as_it_is(alter: Alter, dtype: torch.dtype) -> None:
    found = account(alter(dtype=dtype)).weights.values()
    assert {tensor.dtype for tensor in found} == {str(dtype).removeprefix("torch.")}


def with_config(checkpoint: Checkpoint, **values: Any) -> Checkpoint:
    file = checkpoint.folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return open_checkpoint(checkpoint.folder)


def test_a_layer_beyond_n_layer_is_refused(alter: Alter) -> None:
    checkpoint = with_config(alter(), n_layer=2)
    refused(
        checkpoint,
        r"model\.safetensors: tensor transformer\.h\.2\.\S+ is beyond what config\.json describes \(n_layer 2",
    )


def test_a_prelu_weight_without_prelu_is_refused(alter: Alter) -> None:
    checkpoint = with_config(alter(activation_function="prelu"), activation_function="relu")
    refused(checkpoint, r"tensor transformer\.h\.0\.mlp\.act\.weight is beyond .* activation_function 'relu'")


def test_a_billion_layers_are_refused_at_once(alter: Alter) -> None:
    checkpoint = with_config(alter(), n_layer=10**9)
    tracemalloc.start()
    try:
        refused(checkpoint, r"has no tensor h\.3\.ln_1\.weight \[12\]")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_transposed_weight_is_refused_and_not_turned(alter: Alter) -> None:
    name = "transformer.h.0.attn.c_attn.weight"
    checkpoint = alter(lambda state: state.update({name: state[name].t().contiguous()}))
    refused(checkpoint, r"h\.0\.attn\.c_attn\.weight is \[36, 12\]; config\.json asks for \[12, 36\]")


def test_a_square_weight_is_never_touched(alter: Alter) -> None:
    """No shape tells whether it is transposed; its name says how it lies."""
    name = "h.1.attn.c_proj.weight"
    as_it_is, turned = (
        account(alter(change, as_bin=True, n_inner=12))
        for change in (
            lambda state: None,
            lambda state: state.update({f"transformer.{name}": state[f"transformer.{name}"].t()}),
        )
    )
    assert turned.weights[name].memmap().tolist() == as_it_is.weights[name].memmap().T.tolist()
    for ledger in (as_it_is, turned):
        layouts = {entry.name: entry.layout for entry in ledger.entries}
        assert layouts[name] == layouts["h.1.mlp.c_fc.weight"] == Layout.CONV1D


def raw(folder: Path, name: str, tensor: torch.Tensor) -> LazyTensor:
    file = folder / name
    file.write_bytes(tensor.numpy().tobytes())
    return LazyTensor(name, "float32", tuple(tensor.shape), file, 0)


@pytest.mark.parametrize("place", [0, CHUNK_BYTES // 4, -1])
def test_same_bytes_looks_at_every_chunk(tmp_path: Path, place: int) -> None:
    values = torch.arange(float(CHUNK_BYTES))
    other = values.clone()
    other[place] = -5
    assert same_bytes(raw(tmp_path, "a", values), raw(tmp_path, "b", values))
    assert not same_bytes(raw(tmp_path, "a", values), raw(tmp_path, "c", other))


def test_same_bytes_sees_through_strides(tmp_path: Path) -> None:
    values = torch.arange(6.0).reshape(2, 3)
    straight = raw(tmp_path, "a", values)
    file = raw(tmp_path, "b", values.t().contiguous()).file
    assert same_bytes(straight, LazyTensor("b", "float32", (2, 3), file, 0, (1, 2)))
    assert not same_bytes(straight, LazyTensor("b", "float32", (2, 3), file, 0))
    assert not same_bytes(straight, LazyTensor("a", "float32", (2, 3), straight.file, 0, (1, 2)))


def test_same_bytes_of_another_shape_are_not_the_same(tmp_path: Path) -> None:
    values = torch.arange(6.0)
    assert not same_bytes(raw(tmp_path, "a", values), raw(tmp_path, "b", values.reshape(2, 3)))


def test_a_single_glob_is_not_taken_apart_into_letters(alter: Alter) -> None:
    checkpoint = alter(lambda state: state.update({"v_head.weight": torch.ones(1)}))
    assert account(checkpoint, "v_head.*").weights == account(checkpoint, ["v_head.*"]).weights


# --- Heads ------------------------------------------------------------------------------------------------------------

OTHER_HEADS = [head for head in ASKED if head != "lm"]


def stripped(folder: Path, *keys: str, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in keys}
    (folder / "config.json").write_text(json.dumps(kept | values))


@pytest.mark.parametrize("head", OTHER_HEADS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
def test_the_tensors_of_each_head_are_those_that_transformers_saves(save: Save, head: str, prefix: str) -> None:
    folder = save(head=head, num_labels=5) if head != "double-heads" else save(head=head)
    state = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    ledger = account(open_checkpoint(folder))
    assert ledger.config.head == head
    assert {entry.role for entry in ledger.entries} == {Role.USED}
    assert {canonical(name) for name in state} == set(ledger.weights)
    assert ledger.parameters == sum(tensor.numel() for tensor in state.values())


@pytest.mark.parametrize("head", OTHER_HEADS)
@pytest.mark.parametrize("architectures", [None, [], ["SomethingElse"]], ids=str)
def test_where_no_config_names_the_head_the_tensors_do(save: Save, head: str, architectures: Any) -> None:
    folder = save(head=head, num_labels=5) if head != "double-heads" else save(head=head)
    stripped(folder, "architectures", **({} if architectures is None else {"architectures": architectures}))
    ledger = account(open_checkpoint(folder))
    assert ledger.config.head == ("lm" if head == "base" else head)  # of a tied language model nothing else is seen
    if head in ("sequence-classification", "token-classification"):
        assert ledger.config.num_labels == 5


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("head", ASKED)
def test_the_head_that_is_asked_for_is_made_of_any_checkpoint_that_has_its_weights(
    save: Save, head: str, asked: str
) -> None:
    folder = save(head=head, tie_word_embeddings=True)
    state = load_file(folder / "model.safetensors")
    made_of = {"lm", "base", head} | ({"lm"} if head == "double-heads" else set())
    if asked not in made_of:
        with pytest.raises(CheckpointError, match=r"has no tensor (score|classifier|qa_outputs|multiple_choice)"):
            account(open_checkpoint(folder, SourceOptions(head=asked)))
        return
    ledger = account(open_checkpoint(folder, SourceOptions(head=asked)))
    assert ledger.config.head == asked
    aside = {entry.tensor.name for entry in ledger.entries if entry.role is Role.OTHER_HEAD}
    assert aside == (
        {name for name in state if "transformer." not in name and head != "base"} if asked != head else set()
    )
    assert not aside & {weight.name for weight in ledger.weights.values()}


@pytest.mark.parametrize(
    ("head", "surplus"),
    [
        ("lm", "score.weight"),
        ("base", "classifier.bias"),
        ("sequence-classification", "qa_outputs.weight"),
        ("token-classification", "lm_head.weight"),
        ("question-answering", "multiple_choice_head.summary.weight"),
        ("double-heads", "score.weight"),
    ],
)
def test_tensors_of_another_head_are_refused_with_the_mend_unless_the_head_was_asked_for(
    save: Save, head: str, surplus: str
) -> None:
    folder = save(head=head)
    state = load_file(folder / "model.safetensors")
    save_file(state | {surplus: torch.ones(2, 12)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{surplus} is beyond .* head {head}\); --head makes another head"):
        account(open_checkpoint(folder))
    ledger = account(open_checkpoint(folder, SourceOptions(head=head)))
    assert [entry.name for entry in ledger.entries if entry.role is Role.OTHER_HEAD] == [surplus]
    assert surplus not in ledger.weights
    assert surplus not in account(open_checkpoint(folder), [surplus]).weights


def test_two_heads_that_no_config_names_are_refused(save: Save) -> None:
    folder = save(head="sequence-classification")
    state = load_file(folder / "model.safetensors")
    save_file(state | {"qa_outputs.weight": torch.ones(2, 12)}, folder / "model.safetensors", {"format": "pt"})
    stripped(folder, "architectures")
    with pytest.raises(CheckpointError, match=r"--head makes another head"):
        account(open_checkpoint(folder))


def test_a_model_of_two_heads_is_two_graphs_of_its_weights(save: Save) -> None:
    ledger = account(open_checkpoint(save(head="double-heads", tie_word_embeddings=False)))
    first, second = ledger.per_graph
    assert (first.config.head, second.config.head) == ("lm", "multiple-choice")
    choice = {"multiple_choice_head.summary.weight", "multiple_choice_head.summary.bias"}
    assert set(ledger.weights) - set(first.weights) == choice
    assert set(ledger.weights) - set(second.weights) == {"lm_head.weight"}
    single = account(open_checkpoint(save("single", head="base")))
    assert single.per_graph == (single,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"summary_type": "mean"}, "summary_type is 'mean'"),
        ({"summary_type": "last"}, "expected 'cls_index' and True"),
        ({"summary_use_proj": False}, "summary_use_proj False"),
    ],
)
def test_a_choice_that_is_summed_up_otherwise_is_refused(save: Save, values: dict[str, Any], message: str) -> None:
    folder = save(head="double-heads")
    stripped(folder, **values)
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(folder)
    open_checkpoint(folder, SourceOptions(head="lm"))  # of which it says nothing


def test_a_head_that_there_is_not_is_refused_with_those_that_there_are(save: Save) -> None:
    with pytest.raises(ConfigError, match="there is no head 'nonsense'; expected one of lm, base, sequence-class"):
        open_checkpoint(save(), SourceOptions(head="nonsense"))
    with pytest.raises(ConfigError, match="there is no head 'multiple-choice'"):
        open_checkpoint(save("other"), SourceOptions(head="multiple-choice"))


def test_labels_that_the_config_does_not_count_right_are_refused_with_both_shapes(save: Save) -> None:
    folder = save(head="sequence-classification", num_labels=3)
    stripped(folder, "id2label", "label2id")
    with pytest.raises(CheckpointError, match=r"score.weight is \[3, 12\]; config.json asks for \[2, 12\]"):
        account(open_checkpoint(folder))


def test_a_tied_head_beside_a_classification_is_refused_too(save: Save) -> None:
    folder = save(head="sequence-classification")
    state = load_file(folder / "model.safetensors")
    copy = {"lm_head.weight": state["transformer.wte.weight"].clone()}
    save_file(state | copy, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is beyond what config\.json describes"):
        account(open_checkpoint(folder))
