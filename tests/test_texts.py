"""Files of text are read as what they are, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.errors import TextError
from converter.texts import read_texts


def test_files_are_read_as_text_or_as_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "more": 1}\n')
    assert read_texts(tmp_path / "a.txt") == ["one\ntwo"]
    assert read_texts(tmp_path / "b.jsonl") == ["one", "two"]
    for name, content, message in (
        ("c.jsonl", b'{"text": "one"}\n\n{"txt": 1}', "line 3 has no text"),
        ("d.jsonl", b"", "it is empty"),
        ("e.jsonl", b'{"text": 5}', "line 1 has no text"),
        ("f.jsonl", b"not JSON", "line 1 has no text"),
        ("g.txt", b"\xff", "UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TextError, match=f"{name} .*{message}"):
            read_texts(tmp_path / name)
    with pytest.raises(TextError, match="absent"):
        read_texts(tmp_path / "absent")
