"""transformers.js in Node: the folder as it was written, each precision by its ``dtype``."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from converter import convert, load
from converter.data import CHECKPOINT
from converter.weights.precisions import PRECISIONS
from tests.clients.javascript import CANNOT, ENVIRONMENT, NODE, NOTES, WHAT, Reply, asked, wanted

OFFICIAL = Path(__file__).parents[3] / "shared" / "gpt2-tokenizer"
PROMPT, NEW_TOKENS = "Once upon a time", 40  # of the model card

TRICKY = (
    "",
    " ",
    "   a   b  ",
    "Hello world",
    "don't we'll I'M you'Re it''s 'm n't",
    "test .  a , b ! c ?",
    "line\r\nline\r\r\n\n\n",
    "\t\ttabs\tand\x0b\x0c",
    "nul \x00 in\x00side",
    "\x01\x02\x7f\x80\x9f",
    "é e\u0301 ñ n\u0303 \u0301first",
    "👍🏽 👩\u200d👩\u200d👧\u200d👦 🇩🇪🇩",
    "7 1 23 456 7890 3.14 ½ ² ١٢٣ Ⅷ",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> c",
    "<|endoftext|",
    "שלום עולם مرحبا بالعالم \u202eabc\u202c",
    "漢字かな交じり文、一二三。ｆｕｌｌ　ｗｉｄｔｈ\u3000x",
    "\u00a0nbsp\u2003em\u200bzero\ufeffbom\u2028line\u2029paragraph\x85next",
    "ſ K Å ﬁ ß İ ı",
    "ก็ไทย हिन्दी",
    "…—–“”‘’",
    "\U00010348\U0001f4a9\U000e0001\ufffd\uffff\U0010ffff",
    "#" * 70 + " " * 70 + "\n" * 9,
    "def __init__(x):\n    return x**2  # ok\n",
)


@pytest.fixture(scope="module", params=["bundled", "GPT-2"])
def with_tokenizer(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundled tokenizer, and one with GPT-2's own, made of ``vocab.json`` and ``merges.txt``."""
    if request.param == "bundled":
        return folder
    if not OFFICIAL.is_dir():
        pytest.skip("GPT-2's own tokenizer files are not here")
    source = tmp_path_factory.mktemp("tokenizer") / "source"
    shutil.copytree(CHECKPOINT, source, ignore=shutil.ignore_patterns("tokenizer*"))
    for file in OFFICIAL.iterdir():
        shutil.copyfile(file, source / file.name)
    convert(source, source.with_name("out"))
    return source.with_name("out")


def test_texts_become_the_tokens_that_they_are_in_python_and_back(
    with_tokenizer: Path, ask: Callable[..., Reply]
) -> None:
    tokenizer = Tokenizer.from_file(str(with_tokenizer / "tokenizer.json"))
    ids = [tokenizer.encode(text).ids for text in TRICKY]
    decodable = [row for row in ids if row]  # transformers.js decodes no empty list
    reply = ask(ENVIRONMENT, NODE, {"folder": str(with_tokenizer), "encode": TRICKY, "decode": decodable})
    assert dict(zip(TRICKY, reply["encode"]["tokens"], strict=True)) == dict(zip(TRICKY, ids, strict=True))
    assert reply["decode"]["tokens"] == [tokenizer.decode(row, skip_special_tokens=False) for row in decodable]


@pytest.fixture(scope="module", params=PRECISIONS)
def answered(
    request: pytest.FixtureRequest, folder: Path, questions: Reply, ask: Callable[..., Reply]
) -> tuple[str, Reply]:
    return request.param, ask(ENVIRONMENT, NODE, asked(folder, questions, request.param))


@pytest.mark.parametrize("what", WHAT)
def test_it_answers_as_hugging_face_does(
    what: str,
    answered: tuple[str, Reply],
    folder: Path,
    expected: Callable[[str, str], Any],
    hold: Callable[..., None],
) -> None:
    precision, reply = answered
    cannot = CANNOT.get(what, ""), NOTES.get(what, "")
    hold("transformers.js, Node", precision, what, reply, wanted(expected, folder, precision, what), *cannot)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_model_cards_program_writes_what_is_expected_and_asks_no_other_host(
    precision: str, environment: Callable[[str], Path], tmp_path: Path, folder: Path
) -> None:
    out = tmp_path / "out"
    convert(CHECKPOINT, out, precision=precision)
    [program] = re.findall(r"^```js\n(.*?)^```", (out / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "program.mjs").write_text(program, "utf-8")
    (tmp_path / "node_modules").symlink_to(environment(ENVIRONMENT) / "node_modules")
    no_network = "data:text/javascript,globalThis.fetch = () => process.exit(3)"
    done = subprocess.run(
        ["node", f"--import={no_network}", tmp_path / "program.mjs"],
        cwd=out,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    text = load(folder, precision=precision).generate([PROMPT], max_new_tokens=NEW_TOKENS).texts[0]
    assert done.stdout == f"{PROMPT}{text}\n"
