"""Tokenizers carried over, completed, and read as transformers reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, models

from converter import tokenizer
from converter.data import CHECKPOINT
from converter.errors import GPT2Error, TokenizerError
from converter.folder.convert import convert

Save = Callable[..., Path]

OFFICIAL = Path(__file__).parents[3] / "shared" / "gpt2-tokenizer"
TRICKY = (
    "Hello world",
    " leading",
    "trailing ",
    "a  b\n\n\tc",
    "don't WON'T I'm",
    "größer naïve",
    "日本語のテキスト",
    "😀\u200d👩",
    "<|endoftext|>",
    "x<|endoftext|> y",
    "123 456789",
    "\u00a0\u200b",
    "def f(x):\n    return x**2",
    "\x00",
    "",
)


@pytest.fixture
def official() -> Path:
    if not (OFFICIAL / "vocab.json").is_file():
        pytest.skip("GPT-2's own tokenizer files are not here")
    return OFFICIAL


@pytest.mark.parametrize("text", TRICKY)
def test_gpt2s_own_vocabulary_is_read_as_transformers_reads_it(official: Path, text: str) -> None:
    ours = tokenizer.load(official)
    assert ours is not None
    theirs = transformers.GPT2Tokenizer.from_pretrained(official)
    assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


def test_a_vocabulary_with_merges_gets_a_tokenizer_json(official: Path, save: Save, tmp_path: Path) -> None:
    source = save(vocab_size=50257)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(official / name, source / name)
    convert(source, tmp_path / "out")
    assert (tmp_path / "out" / "vocab.json").read_bytes() == (official / "vocab.json").read_bytes()
    written = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["padding_side"] == "left"
    assert settings["eos_token"] == settings["pad_token"] == "<|endoftext|>"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TRICKY:
        assert written.encode(text).ids == theirs(text)["input_ids"], text
    assert theirs.padding_side == "left"


def small_bpe(folder: Path, added: dict[str, int] | None = None, **settings: object) -> Path:
    """A vocabulary of the 256 bytes and one merge."""
    from tokenizers import pre_tokenizers

    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab["he"] = len(vocab)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\n")
    if added is not None:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_added_tokens_keep_their_ids(tmp_path: Path) -> None:
    loaded = tokenizer.load(small_bpe(tmp_path, {"<pad>": 258, "<sep>": 257}, pad_token="<pad>"))
    assert loaded is not None
    assert loaded.encode("he<sep>he<pad>").ids == [256, 257, 256, 258]
    assert loaded.decode([256, 258]) == "he"  # <pad> is special, <sep> is not
    assert loaded.decode([256, 257]) == "he<sep>"


def test_an_added_token_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"gives <far> the id 999"):
        tokenizer.load(small_bpe(tmp_path, {"<far>": 999}))


def test_a_prefix_space_is_added_where_the_config_asks_for_it(tmp_path: Path) -> None:
    plain = tokenizer.load(small_bpe(tmp_path / "plain"))
    spaced = tokenizer.load(small_bpe(tmp_path / "spaced", add_prefix_space=True))
    assert plain is not None
    assert spaced is not None
    assert spaced.encode("he").ids == plain.encode(" he").ids != plain.encode("he").ids


def test_padding_goes_to_the_left_by_the_end_of_text_and_everything_else_stays(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "source")
    before = json.loads((tmp_path / "source" / "tokenizer_config.json").read_text())
    convert(tmp_path / "source", tmp_path / "out")
    after = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert after == before | {
        "padding_side": "left",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    padded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(["A list", "A longer list"], padding=True)
    assert padded["attention_mask"][0][0] == 0
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (CHECKPOINT / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("asked", [True, False, None])
def test_spaces_before_punctuation_stay_where_transformers_leaves_them(tmp_path: Path, asked: bool | None) -> None:
    """transformers never takes them out of a BPE's texts; transformers.js does so by default."""
    option = {} if asked is None else {"clean_up_tokenization_spaces": asked}
    settings = {}
    for name, model in (("bpe", models.BPE()), ("other", models.WordLevel({"a": 0}, "a"))):
        (tmp_path / name).mkdir()
        Tokenizer(model).save(str(tmp_path / name / "tokenizer.json"))
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(option | {"tokenizer_class": "T"}))
        tokenizer.complete(tmp_path / name, n_positions=24)
        settings[name] = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
    assert settings["bpe"]["clean_up_tokenization_spaces"] is False
    assert settings["other"]["clean_up_tokenization_spaces"] is bool(asked)


def test_a_padding_token_of_its_own_stays(tmp_path: Path) -> None:
    small_bpe(tmp_path, {"<pad>": 257, "<end>": 258}, pad_token="<pad>", eos_token="<end>")
    tokenizer.complete(tmp_path, n_positions=24)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["pad_token"] == "<pad>"


def test_an_end_of_text_that_the_vocabulary_lacks_pads_nothing(tmp_path: Path) -> None:
    (small_bpe(tmp_path) / "tokenizer_config.json").unlink()
    tokenizer.complete(tmp_path, n_positions=24)
    assert "pad_token" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_a_source_without_a_tokenizer_converts(save: Save, tmp_path: Path) -> None:
    convert(save(), tmp_path / "out")
    assert not list((tmp_path / "out").glob("tokenizer*"))
    assert tokenizer.load(tmp_path / "out") is None


def test_a_damaged_tokenizer_is_named(save: Save, tmp_path: Path) -> None:
    source = save()
    (source / "tokenizer.json").write_text("{ rubbish")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        tokenizer.load(source)
    shutil.copyfile(CHECKPOINT / "tokenizer.json", source / "tokenizer.json")
    (source / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(GPT2Error, match=r"source/tokenizer_config\.json holds a list; expected a JSON object"):
        convert(source, tmp_path / "out")
