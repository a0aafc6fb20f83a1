"""Give a source's weights the numbers that an export has for them: rounded to a shorter type, or quantized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from converter.checkpoint.tensor import LazyTensor, to_float32
from converter.parity.exports.matching import Match
from converter.parity.exports.types import TYPES
from converter.parity.exports.weights import Found
from converter.parity.legs.shipped import InMemory
from converter.weights.ledger import Ledger

EMBEDDING, HEAD = "wte.weight", "lm_head.weight"


def with_numbers(ledger: Ledger, found: Found) -> Ledger:
    """Return a ledger with the numbers that an export has. A head is untied if it has others than the embedding."""
    matches: dict[str, Match | None] = {name: _of_use(name, held) for name, held in found.quantized.items()}
    tied, rows = ledger.config.tie_word_embeddings, found.quantized.get(EMBEDDING, ())
    config = ledger.config
    if tied and rows and config.head_spec.predicts:
        head = next((one for one in rows if one.quantized.multiplies), None)
        embedding = next((one for one in rows if one.quantized.embeds), None)
        if head is not embedding:
            config = replace(config, tie_word_embeddings=False)
            matches |= {EMBEDDING: embedding, HEAD: head}
    if not found.weights.rounding and not any(matches.values()):
        return ledger
    return replace(ledger, config=config, weights=_Numbers(ledger, found, matches))


def _of_use(name: str, held: tuple[Match, ...]) -> Match:
    """Return the numbers that a weight is used with. Only a tied embedding is used in two ways."""
    looked_up = name.endswith(("wte.weight", "wpe.weight"))
    return next((one for one in held if one.quantized.embeds == looked_up), held[0])


class _Numbers(Mapping[str, LazyTensor]):
    """The weights of a source with the numbers of an export. Each is made on use."""

    def __init__(self, ledger: Ledger, found: Found, matches: Mapping[str, Match | None]) -> None:
        self.weights, self.rounding, self.matches = ledger.weights, found.weights.rounding, matches
        self.names = list(dict.fromkeys([*ledger.weights, *matches]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> LazyTensor:
        source = EMBEDDING if name == HEAD and HEAD not in self.weights else name
        weight, match, rounded = self.weights[source], self.matches.get(name), self.rounding.get(source)
        if match is not None:
            numbers = match.numbers()
        elif rounded is not None:
            numbers = to_float32(weight.memmap(), weight.dtype).astype(TYPES[rounded]).astype(np.float64)
        else:
            return weight
        return InMemory(name, "float64", weight.shape, weight.file, 0, array=np.ascontiguousarray(numbers))
