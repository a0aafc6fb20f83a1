"""Say how many times as fast as the peers gpt2onnx is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peers.figures import NOTHING, Figure, decode, load, prefill
from peers.results import Results, Row

OURS_FP32, OURS_INT8, OURS_INT4 = "ours fp32", "ours int8", "ours int4"
GENAI_FP32, GENAI_INT8 = "genai fp32 on our graph", "genai int8 on our graph"
FP32_PEERS = (
    "optimum fp32",
    "mobius fp32 in genai",
    "transformers' exporter fp32",
    "CTranslate2 float32",
    "llama.cpp f32",
    "transformers fp32",
)
OTHER_PEERS = ("CTranslate2 int8", "llama.cpp q8_0", "llama.cpp q4_0", "transformers bf16")


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the best of ours is as the best of the peers."""

    label: str
    figure: Figure
    ours: Sequence[str]
    peers: Sequence[str]


ALL_OURS = (OURS_FP32, OURS_INT8, OURS_INT4)
RATIOS = (
    Ratio("fp32 decode: ours / best peer", decode(1, 128), [OURS_FP32], FP32_PEERS),
    Ratio("fp32 prefill (128): ours / best fp32 peer", prefill(128), [OURS_FP32], FP32_PEERS),
    Ratio("int8 decode: ours / llama.cpp q8_0", decode(1, 128), [OURS_INT8], ["llama.cpp q8_0"]),
    Ratio("int8 decode: ours / CTranslate2 int8", decode(1, 128), [OURS_INT8], ["CTranslate2 int8"]),
    Ratio("int8 prefill (128): ours / CTranslate2 int8", prefill(128), [OURS_INT8], ["CTranslate2 int8"]),
    Ratio("int4 decode: ours / llama.cpp q4_0", decode(1, 128), [OURS_INT4], ["llama.cpp q4_0"]),
    Ratio("our loop / genai's, same fp32 graph: decode", decode(1, 128), [OURS_FP32], [GENAI_FP32]),
    Ratio("our loop / genai's, same fp32 graph: prefill (128)", prefill(128), [OURS_FP32], [GENAI_FP32]),
    Ratio("our loop / genai's, same int8 graph: decode", decode(1, 128), [OURS_INT8], [GENAI_INT8]),
    Ratio("batch 32 decode, fp32: ours / best peer", decode(32, 128), [OURS_FP32], FP32_PEERS),
    Ratio("batch 32 decode, any precision: ours / best peer", decode(32, 128), ALL_OURS, FP32_PEERS + OTHER_PEERS),
    Ratio("prefill (900), any precision: ours / best peer", prefill(900), ALL_OURS, FP32_PEERS + OTHER_PEERS),
    Ratio("int4 prefill (128): ours / llama.cpp q4_0", prefill(128), [OURS_INT4], ["llama.cpp q4_0"]),
)

# The one of ours that each peer is held against: of the same precision, and int8 for 16 bits.
COUNTERPARTS = {
    **dict.fromkeys(FP32_PEERS, OURS_FP32),
    GENAI_FP32: OURS_FP32,
    GENAI_INT8: OURS_INT8,
    "CTranslate2 int8": OURS_INT8,
    "llama.cpp q8_0": OURS_INT8,
    "transformers bf16": OURS_INT8,
    "llama.cpp q4_0": OURS_INT4,
}
AGAINST_EACH: dict[str, Figure] = {
    "load": load,
    **{f"prefill {context}": prefill(context) for context in (16, 128, 900)},
    **{f"decode {batch} × {context}": decode(batch, context) for batch in (1, 8, 32) for context in (128, 900)},
}


def against(peer: str, rows: dict[str, Row]) -> list[float | None]:
    """Return for each figure how many times as fast as a peer its counterpart is; None where one was not measured."""
    found: list[float | None] = []
    for figure in AGAINST_EACH.values():
        sides = [figure(rows[name]) if name in rows else None for name in (COUNTERPARTS[peer], peer)]
        found.append(sides[0] / sides[1] if sides[0] and sides[1] else None)
    return found


def against_row(peer: str, rows: dict[str, Row]) -> list[str]:
    cells = [NOTHING if ratio is None else f"{ratio:.2f}" for ratio in against(peer, rows)]
    return [f"{COUNTERPARTS[peer]} / {peer}", *cells]


def behind(rows: dict[str, Row]) -> list[str]:
    """Return a line for each figure in which a peer is ahead of its counterpart."""
    return [
        f"{COUNTERPARTS[peer]}, {figure}: {ratio:.2f} times as fast as {peer}"
        for peer in COUNTERPARTS
        for figure, ratio in zip(AGAINST_EACH, against(peer, rows), strict=True)
        if ratio is not None and ratio < 1
    ]


def best(names: Sequence[str], rows: dict[str, Row], figure: Figure) -> tuple[str, float] | None:
    """Return the fastest of some candidates, and its figure; None if none was measured."""
    measured = [(name, value) for name in names if name in rows and (value := figure(rows[name])) is not None]
    return max(measured, key=lambda pair: pair[1], default=None)


def ratios(results: Results) -> dict[str, float | None]:
    """Return the ratios by their labels; None where one side was not measured."""
    found: dict[str, float | None] = {}
    for ratio in RATIOS:
        ours, peer = (best(names, results.rows, ratio.figure) for names in (ratio.ours, ratio.peers))
        found[ratio.label] = ours[1] / peer[1] if ours and peer else None
    return found


def ratio_row(ratio: Ratio, rows: dict[str, Row]) -> list[str]:
    ours, peer = (best(names, rows, ratio.figure) for names in (ratio.ours, ratio.peers))
    if ours is None or peer is None:
        sides = ((ratio.ours, ours), (ratio.peers, peer))
        lacking = " and ".join(" or ".join(names) for names, found in sides if found is None)
        return [ratio.label, NOTHING, f"{lacking} not measured"]
    return [ratio.label, f"{ours[1] / peer[1]:.2f}", f"{ours[0]} {ours[1]:.0f} tokens/s, {peer[0]} {peer[1]:.0f}"]
