"""Files of text are read as what they are, or refused by name."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import pytest

from converter.errors import TextError
from converter.texts import PromptLine, read_prompts, read_texts


def test_files_are_read_as_text_or_as_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "more": 1}\n')
    assert read_texts(tmp_path / "a.txt") == ["one\ntwo"]
    assert read_texts(tmp_path / "b.jsonl") == ["one", "two"]
    for name, content, message in (
        ("c.jsonl", b'{"text": "one"}\n\n{"txt": 1}', "line 3 has no text"),
        ("d.jsonl", b"", "it is empty"),
        ("e.jsonl", b'{"text": 5}', "line 1 has no text"),
        ("f.jsonl", b"not JSON", "line 1 is no JSON"),
        ("g.txt", b"\xff", "UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TextError, match=f"{name} .*{message}"):
            read_texts(tmp_path / name)
    with pytest.raises(TextError, match="absent"):
        read_texts(tmp_path / "absent")


def test_parquet_is_read_row_by_row_with_its_other_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"text": ["one", "two", "three"], "n": [1, None, 3], "day": [date(2026, 1, n) for n in (1, 2, 3)]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", row_group_size=2)
    assert read_texts(tmp_path / "a.parquet") == ["one", "two", "three"]
    assert read_prompts(tmp_path / "a.parquet")[1] == PromptLine(2, "two", {"n": None, "day": "2026-01-02"})
    parquet.write_table(pyarrow.table({"prompt": [[1, 2], [3]]}), tmp_path / "b.parquet")
    assert [line.prompt for line in read_prompts(tmp_path / "b.parquet")] == [[1, 2], [3]]
    with pytest.raises(TextError, match=r"b\.parquet cannot be read as Parquet: row 1 has no text"):
        read_texts(tmp_path / "b.parquet")
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "c.parquet")
    with pytest.raises(TextError, match="row 2 has no prompt"):
        read_prompts(tmp_path / "c.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing else", b"PAR1" + bytes(60) + b"PAR1"])
def test_a_damaged_file_of_parquet_ends_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("pyarrow")
    file = tmp_path / "d.parquet"
    with pytest.raises(TextError, match=r"^\S+d\.parquet cannot be read as Parquet: [^\n]+$"):
        read_texts(file)
    file.write_bytes(content)
    with pytest.raises(TextError, match=r"^\S+d\.parquet cannot be read as Parquet: [^\n]+$"):
        read_texts(file)


def test_without_pyarrow_parquet_is_refused_by_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TextError, match=r"e\.parquet needs pyarrow: pip install pyarrow"):
        read_texts(tmp_path / "e.parquet")
