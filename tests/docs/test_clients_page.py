"""The tables of docs/clients.md: made of what tests saw, between two marks of a page that people write."""

from __future__ import annotations

from pathlib import Path

from tests.clients.table import BEGIN, END, Seen, write


def test_only_what_lies_between_the_marks_is_written_anew(tmp_path: Path) -> None:
    page = tmp_path / "clients.md"
    page.write_text(f"# Clients\n{BEGIN}\nold\n{END}\nThe end.\n")
    (tmp_path / "optimum").mkdir()
    (tmp_path / "optimum" / "installed").write_text("optimum-onnx==0.1.0 torch==2.13.0\n")
    seen = [
        Seen("Optimum", "fp32", "single", "ok"),
        Seen("Optimum", "int8", "single", "cannot: no kernel"),
        Seen("Optimum", "fp32", "batch", "cannot: no kernel", "pads on the right"),
        Seen("onnxruntime-genai", "fp32", "single", "ok"),
        Seen("onnxruntime-1.15.0", "opset 17", "fp32", "ok"),
    ]
    write(page, seen, tmp_path)
    text = page.read_text()
    assert text.startswith(f"# Clients\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nThe end.\n")
    assert "old" not in text
    assert r"| Optimum | single | ok | \[1\] |" in text
    assert r"| Optimum | batch | \[1\] \[2\] |  |" in text
    assert "\n1. no kernel\n2. pads on the right\n" in text
    assert "| Optimum | optimum-onnx==0.1.0, torch==2.13.0 |" in text
    assert text.index("| onnxruntime-genai |") < text.index("## Opsets") < text.index("| 1.15.0 |")
    assert "| 1.15.0 | fp32 | ok |" in text
    write(page, seen, tmp_path)
    assert page.read_text() == text
