"""A Hub id opens as its folder would, and only what a conversion needs is asked for; on a loopback Hub."""

from __future__ import annotations

import json
import re
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as packed

from converter.checkpoint.hub import is_hub_id
from tests.checkpoint.writers.lora import write as write_adapter

A, B = torch.arange(6.0).reshape(2, 3), torch.arange(4.0) - 9
CONFIG = b'{"model_type": "gpt2"}'
WEIGHTS = packed({"a": A})
SMALL = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
SHARDED = {
    "config.json": CONFIG,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    ).encode(),
    "one.safetensors": WEIGHTS,
    "two.safetensors": packed({"b": B}),
}
NOT_NEEDED = dict.fromkeys(
    ("README.md", "flax_model.msgpack", "tf_model.h5", "onnx/model.onnx", "onnx/config.json", ".gitattributes",
     "three.safetensors", "training_args.bin", "my-LICENSE", "chat_templates/x.jinja"), b"not needed",
)  # fmt: skip
Hub = Any  # the fixture's class, in conftest.py


def files(folder: Path) -> dict[str, bytes]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in found}


@pytest.mark.parametrize(
    ("needed", "beside", "weight_file"),
    [
        (SMALL, {"pytorch_model.bin": b"x", "model.safetensors.index.json": b"x"}, "model.safetensors"),
        (SHARDED, {"pytorch_model.bin": b"x"}, "model.safetensors.index.json"),
        ({"config.json": CONFIG, "pytorch_model.bin": b"bin"}, {"x.safetensors": b"x"}, "pytorch_model.bin"),
    ],
    ids=["safetensors", "sharded", "bin"],
)
def test_only_what_is_needed_is_fetched(
    hub: Hub, tmp_path: Path, needed: dict[str, bytes], beside: dict[str, bytes], weight_file: str
) -> None:
    if weight_file == "pytorch_model.bin":
        torch.save({"a": A}, tmp_path / "x")
        needed = needed | {"pytorch_model.bin": (tmp_path / "x").read_bytes()}
    needed = needed | {"tokenizer.json": b"{}", "merges.txt": b"x y", "LICENSE": b"MIT"}
    needed["additional_chat_templates/tool_use.jinja"] = b"{{ messages }}"
    digest = hub.repo("user/my-gpt2").commit(needed | beside | NOT_NEEDED, "main")
    opened = hub.open("user/my-gpt2")
    assert (opened.error, opened.message) == ("", "")
    assert (opened.name, opened.weight_file) == (f"user/my-gpt2@{digest}", weight_file)
    assert files(opened.folder) == needed
    assert sorted(hub.fetched()) == sorted(needed)
    assert {request.path for request in hub.requests} == {
        "/api/models/user/my-gpt2",
        "/user/my-gpt2/resolve/main/config.json",
        *(f"/user/my-gpt2/resolve/{digest}/{name}" for name in needed if name != "config.json"),
    }


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub) -> None:
    repo = hub.repo("user/model")
    first = repo.commit(SMALL | {"LICENSE": b"first"}, "v1.0", "refs/pr/4")
    second = repo.commit(SMALL | {"LICENSE": b"second"}, "main")
    for revision, digest in {"v1.0": first, "refs/pr/4": first, first: first, "main": second}.items():
        opened = hub.open(f"user/model@{revision}")
        assert opened.name == f"user/model@{digest}", opened
        assert (opened.folder / "LICENSE").read_bytes() == (b"first" if digest == first else b"second")


def test_a_branch_that_moved_is_fetched_anew_and_one_that_did_not_is_not(hub: Hub) -> None:
    first = hub.repo("user/model").commit(SMALL, "main")
    assert hub.open("user/model").name.endswith(first)
    hub.requests.clear()
    assert hub.open("user/model").name.endswith(first)
    assert [request.path for request in hub.requests] == [
        "/api/models/user/model",
        "/user/model/resolve/main/config.json",
    ]
    assert hub.fetched() == []
    second = hub.repo("user/model").commit(SMALL | {"NOTICE": b"new"}, "main")
    opened = hub.open("user/model")
    assert opened.name == f"user/model@{second}"
    assert (opened.folder / "NOTICE").read_bytes() == b"new"


def test_a_renamed_repository_is_followed(hub: Hub) -> None:
    digest = hub.repo("new-user/new-name").commit(SMALL, "main")
    hub.moved["user/old"] = "new-user/new-name"
    opened = hub.open("user/old")
    assert (opened.name, opened.error) == (f"user/old@{digest}", "")
    assert files(opened.folder) == SMALL


def test_a_large_file_is_fetched_from_where_it_lies_without_the_token(hub: Hub) -> None:
    digest = hub.repo("user/model").commit(SMALL, "main")
    hub.lfs = {"model.safetensors"}
    opened = hub.open("user/model", HF_TOKEN="hf_abc")
    assert opened.error == ""
    assert files(opened.folder) == SMALL
    sent = {request.path: request.token for request in hub.requests}
    assert sent.pop(f"/cdn/user/model/{digest}/model.safetensors") is None
    assert set(sent.values()) == {"Bearer hf_abc"}


def test_without_a_token_none_is_sent(hub: Hub) -> None:
    hub.repo("user/model").commit(SMALL, "main")
    assert hub.open("user/model").error == ""
    assert {request.token for request in hub.requests} == {None}


@pytest.mark.parametrize(
    "revision",
    ["", "@v1.0", "@{commit}"],
    ids=["main", "tag", "commit"],
)
def test_what_was_fetched_once_opens_offline_without_a_request(hub: Hub, revision: str) -> None:
    digest = hub.repo("user/model").commit(SHARDED, "main", "v1.0")
    source = "user/model" + revision.format(commit=digest)
    online = hub.open(source)
    assert online.error == ""
    hub.requests.clear()
    assert hub.open(source, HF_HUB_OFFLINE="1") == online
    assert hub.requests == []


def test_offline_what_is_not_cached_is_one_sentence(hub: Hub) -> None:
    hub.repo("user/model").commit(SMALL, "main")
    opened = hub.open("user/model", HF_HUB_OFFLINE="1")
    assert opened.error == "HubError"
    assert re.fullmatch(
        r"there is no folder user/model, and the Hub model .* is not in the cache; unset HF_HUB_OFFLINE to download it",
        opened.message,
    )
    assert opened.stderr == ""
    assert hub.requests == []


def test_the_network_is_not_asked_for_what_exists_here(hub: Hub, tmp_path: Path) -> None:
    hub.repo("user/model").commit(SMALL, "main")
    local = tmp_path / "user" / "model"
    local.mkdir(parents=True)
    opened = hub.open("user/model", cwd=tmp_path)
    assert (opened.error, opened.message[:19]) == ("CheckpointError", "user/model is empty")
    for name, data in SMALL.items():
        (local / name).write_bytes(data)
    opened = hub.open("user/model", cwd=tmp_path)
    assert (opened.name, opened.folder) == ("model", local)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("user/nothing", "there is neither a folder user/nothing nor a Hub model of that name; .* set HF_TOKEN"),
        ("user/nothing@v9", "there is neither a folder user/nothing@v9 nor a Hub model of that name; .* set HF_TOKEN"),
        ("user/model@v9", "user/model on the Hub has no revision v9"),
        ("user/gated", "user/gated is gated on the Hub: accept its terms there and set HF_TOKEN"),
        ("user/weightless", "user/weightless on the Hub has no weights; expected one of .*"),
        ("user/configless", r"user/configless on the Hub has no config\.json; .*"),
        ("user/mo--del", r"user/mo--del is neither a folder nor a valid Hub id \(.*\)"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_a_sentence(hub: Hub, source: str, sentence: str) -> None:
    hub.repo("user/model").commit(SMALL, "main")
    hub.repo("user/weightless").commit({"config.json": CONFIG, "rust_model.ot": b"x"}, "main")
    hub.repo("user/configless").commit({"model.safetensors": WEIGHTS}, "main")
    hub.repo("user/gated").commit(SMALL, "main")
    hub.gated.add("user/gated")
    opened = hub.open(source)
    assert opened.error == "HubError"
    assert re.fullmatch(sentence, opened.message), opened.message
    assert hub.fetched() in ([], ["config.json"])


def test_an_index_on_the_hub_cannot_lead_out_of_its_repository(hub: Hub) -> None:
    index = json.dumps({"weight_map": {"a": "../../other/model.safetensors"}}).encode()
    hub.repo("user/model").commit({"config.json": CONFIG, "model.safetensors.index.json": index}, "main")
    opened = hub.open("user/model")
    assert opened.error == "CheckpointError"
    assert "points outside its folder: '../../other/model.safetensors'" in opened.message
    assert sorted(hub.fetched()) == ["config.json", "model.safetensors.index.json"]


def test_a_shard_the_repository_lacks_is_named(hub: Hub) -> None:
    hub.repo("user/model").commit({k: v for k, v in SHARDED.items() if k != "two.safetensors"}, "main")
    opened = hub.open("user/model")
    assert (opened.error, "two.safetensors" in opened.message) == ("HubError", True), opened.message


# --- adapters


@pytest.fixture
def base(save: Any) -> Path:
    """A GPT-2 on this machine, with weights that ``LORA`` fits."""
    folder: Path = save("base")
    return folder


@pytest.fixture
def lora(tmp_path: Path) -> dict[str, bytes]:
    """The files of an adapter of ``base``."""
    tensors = {
        f"base_model.model.transformer.h.{i}.attn.c_attn.lora_{part}.weight": np.ones(shape, np.float32)
        for i in range(3)
        for part, shape in (("A", (2, 12)), ("B", (36, 2)))
    }
    return files(write_adapter(tmp_path / "lora", tensors, r=2, target_modules=["c_attn"]))


def test_an_adapter_of_the_hub_is_fetched_at_its_revision(hub: Hub, base: Path, lora: dict[str, bytes]) -> None:
    repo = hub.repo("user/my-lora")
    first = repo.commit(lora | {"README.md": b"x", "adapter_model.bin": b"x", "optimizer.pt": b"x"}, "v1", "main")
    second = repo.commit({"adapter_config.json": b"{}", "adapter_model.safetensors": b"damaged"}, "main")
    opened = hub.open(base, adapter="user/my-lora@v1")
    assert (opened.name, opened.adapter, opened.message) == ("base", f"user/my-lora@{first}", "")
    assert sorted(hub.fetched()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert "adapter_config.json: peft_type is None" in hub.open(base, adapter="user/my-lora").message
    hub.requests.clear()
    assert hub.open(base, adapter="user/my-lora@v1", HF_HUB_OFFLINE="1").adapter == f"user/my-lora@{first}"
    assert hub.requests == []
    assert first != second


def test_an_adapter_and_its_base_may_both_be_on_the_hub(hub: Hub, base: Path, lora: dict[str, bytes]) -> None:
    digest = hub.repo("user/model").commit(base, "main")
    adapter = hub.repo("user/my-lora").commit(lora, "main")
    opened = hub.open("user/model", adapter="user/my-lora")
    assert (opened.name, opened.adapter) == (f"user/model@{digest}", f"user/my-lora@{adapter}"), opened


@pytest.mark.parametrize("more", [{}, {"config.json": CONFIG}], ids=["adapter", "adapter and config"])
def test_an_adapter_of_the_hub_given_as_the_source_names_its_base(
    hub: Hub, base: Path, lora: dict[str, bytes], more: dict[str, bytes]
) -> None:
    hub.repo("user/my-lora").commit(lora | more, "main")
    hub.repo("some/model").commit(base, "main")
    opened = hub.open("user/my-lora")
    advised = "give some/model, which it changes, as SOURCE, and --adapter user/my-lora"
    assert (opened.error, opened.message) == ("CheckpointError", f"user/my-lora is an adapter and no model: {advised}")
    assert hub.open("some/model", adapter="user/my-lora").message == ""


def test_a_tokenizer_beside_an_adapter_is_fetched_too(hub: Hub, base: Path, lora: dict[str, bytes]) -> None:
    hub.repo("user/my-lora").commit(lora | {"tokenizer.json": b"{}", "README.md": b"x", "LICENSE": b"x"}, "main")
    assert hub.open(base, adapter="user/my-lora").message == ""
    assert sorted(hub.fetched()) == ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"]


def test_the_network_is_not_asked_for_an_adapter_that_exists_here(
    hub: Hub, tmp_path: Path, base: Path, lora: dict[str, bytes]
) -> None:
    hub.repo("user/my-lora").commit({"adapter_config.json": b"{}"}, "main")
    local = tmp_path / "user" / "my-lora"
    local.mkdir(parents=True)
    for name, data in lora.items():
        (local / name).write_bytes(data)
    assert hub.open(base, cwd=tmp_path, adapter="user/my-lora").adapter == "my-lora"
    assert hub.requests == []


@pytest.mark.parametrize(
    ("adapter", "kind", "sentence"),
    [
        ("user/nothing", "HubError", "there is neither a folder user/nothing nor a Hub adapter of that name; .*"),
        ("user/my-lora@v9", "HubError", "user/my-lora on the Hub has no revision v9"),
        ("user/model", "HubError", r"user/model on the Hub has no adapter_config\.json; expected a complete adapter"),
        ("user/weightless", "HubError", r"user/weightless on the Hub has no weights; expected one of "
         r"adapter_model\.safetensors, adapter_model\.bin"),
        ("./my-lora", "CheckpointError", r"there is no folder \./my-lora; expected the folder of a PEFT adapter, or a "
         "Hub id such as user/lora"),
        ("my-lora", "CheckpointError", "there is no folder my-lora; expected the folder of a PEFT adapter, .*"),
    ],
)  # fmt: skip
def test_an_adapter_that_is_nowhere_is_one_sentence(
    hub: Hub, base: Path, lora: dict[str, bytes], adapter: str, kind: str, sentence: str
) -> None:
    hub.repo("user/my-lora").commit(lora, "main")
    hub.repo("user/model").commit(SMALL, "main")
    hub.repo("user/weightless").commit({"adapter_config.json": lora["adapter_config.json"]}, "main")
    opened = hub.open(base, adapter=adapter)
    assert opened.error == kind, opened
    assert re.fullmatch(sentence, opened.message), opened.message


UNAVAILABLE = r"there is no folder user/model, and the Hub (cannot be asked for it \(.+\)|.* check the network)"


@pytest.mark.parametrize(
    "answer",
    [
        (503, b"down"),
        (500, b""),
        (200, b"<html>log in to this hotel</html>"),
        (200, b"{}"),
    ],
    ids=["down", "fault", "no json", "no model"],
)
def test_a_hub_that_answers_something_else_is_a_hub_error(hub: Hub, answer: tuple[int, bytes]) -> None:
    hub.broken = answer
    opened = hub.open("user/model")
    assert opened.error == "HubError"
    assert re.fullmatch(UNAVAILABLE, opened.message), opened.message


def test_no_server_is_a_hub_error(hub: Hub) -> None:
    opened = hub.open("user/model", HF_ENDPOINT="http://127.0.0.1:1")
    assert opened.error == "HubError"
    assert re.fullmatch(UNAVAILABLE, opened.message), opened.message


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openai-community/gpt2", True), ("a/b@main", True), ("a/b.c-d_e@refs/pr/4", True), ("user_1/v2.0", True),
        ("gpt2", False), ("gpt2@main", False), ("a/b/c", False), ("./a/b", False), ("/a/b", False), ("../a", False),
        ("a/b@", False), ("a/b@@c", False), ("a/b@-x", False), ("a/b@../x", False), ("a/-b", False), (".a/b", False),
        ("a b/c", False), ("a/b\n", False), ("C:\\a/b", False), ("ä/b", False), ("", False), ("https://a/b", False),
    ],
)  # fmt: skip
def test_a_hub_id_is_told_from_a_path(source: str, expected: bool) -> None:
    assert is_hub_id(source) is expected


def test_what_goes_wrong_in_an_answer_of_the_loopback_hub_fails_the_test(hub: Hub) -> None:
    other = type(hub)(hub.home)
    other.broken = (200,)  # and no body
    with pytest.raises(AssertionError, match="IndexError"):
        ask(other)


def ask(hub: Hub) -> None:
    with hub.serving():
        connection = HTTPConnection("127.0.0.1", hub.port)
        connection.request("GET", "/user/model")
        with pytest.raises(RemoteDisconnected):
            connection.getresponse()
