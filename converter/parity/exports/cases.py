"""Say which cases the interface of an export can express, and run them.

A case may be fed in another way than ours are: whole where there is no cache, or with positions that count padding.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from converter.parity.exports.branches import seen_in
from converter.parity.exports.suspects import suspects_of
from converter.parity.legs.cases import BATCHES, ROW_TOKENS, SHORT_TOKENS, Case, Level, vocabulary
from converter.runtime.exports.feeding import Export, ExportCache
from converter.runtime.exports.interface import Interface
from converter.runtime.exports.signature import Value
from reference.config import GPT2Config

Conditions = dict[tuple[Path | None, str], set[bool]]  # file and name of a condition → what it was

UNPADDED_ROWS, UNPADDED_TOKENS = 3, 12  # of the batch without padding
DENSE_STEP = 8  # tokens at a time, at most, at the level ``full``

# A graph may do something of its own at the numbers that it compares with. So many of them are tried, the smallest
# first, and batches up to this size.
NUMBERS, MOST_ROWS = 16, 65

# So small a vocabulary is fed whole at every level where token ids are looked at.
SMALL_VOCABULARY = 4096

IDS = "input_ids"  # what graphs of ours call them
BY_COLUMN = "positions by column"  # what is added to the name of a case in which padding has positions too


@dataclass(frozen=True)
class Expressed:
    """A case as an export takes it.

    Attributes:
        name: of the case; its truth and its noise have that name.
        case: how it is fed.
        columns: the compared positions whose logits the export gives, ``[columns]``.
        truths: the names of the truths that it may have. Without ``position_ids`` a file counts in one way or the
            other.
    """

    name: str
    case: Case
    columns: np.ndarray
    truths: tuple[str, ...]

    def run(self, export: Export, conditions: Conditions) -> np.ndarray:
        """Feed the case to an export; returns its logits, ``[batch, columns, vocab_size]``.

        Args:
            conditions: what the conditions of branches were; the new values are added.
        """
        cache, parts, begin = ExportCache(export), [], 0
        for size in self.case.chunks:
            window, end = slice(begin, begin + size), begin + size
            fed = self.case.input_ids[:, window], self.case.attention_mask[:, :end], self.case.position_ids[:, window]
            parts.append(cache.step(*fed, self.case.keep))
            for name, value in seen_in(cache.seen).items():
                conditions.setdefault((cache.by, name), set()).add(value)
            begin = end
        return np.concatenate(parts, axis=1)


def express(interfaces: Sequence[Interface], case: Case) -> Expressed | str:
    """Return how an export takes a case, or why it cannot."""
    first, later = interfaces[0], next((each for each in reversed(interfaces) if each.pasts), None)
    padded = not case.attention_mask.all()
    if padded and any(each.mask is None for each in interfaces):
        return "it takes no attention_mask, so that it is held on unpadded rows only"
    if len(case.chunks) > 1 and later is None and not padded and len(case.input_ids) == 1:
        return "it has no cache: every step is a prefill"
    fed = case if later is not None else replace(case, chunks=(case.input_ids.shape[1],))
    size = _another_size(fed, interfaces, later)
    if size:
        return f"it takes {size}"
    columns = np.arange(case.real.shape[1])
    if first.last_only:
        ends = np.cumsum(fed.chunks) - fed.input_ids.shape[1] - 1  # counted from the end
        columns = columns[[end for end in ends if -end <= len(columns)]]
        fed = replace(fed, keep=1)
    counted = padded and any(each.positions is None for each in interfaces)
    truths = (case.name, by_column(case).name) if counted else (case.name,)
    return Expressed(case.name, fed, columns, truths)


def _another_size(case: Case, interfaces: Sequence[Interface], later: Interface | None) -> str:
    """Return the numbers of rows and tokens that files of fixed dimensions take; empty if the case has them.

    A file that takes one token is fed a token at a time.

    Args:
        later: the interface that takes a cache, if one does.
    """
    first, (rows, tokens), (begin, *steps) = interfaces[0], case.input_ids.shape, case.chunks
    for each in interfaces:
        if each.rows not in (None, rows):
            return f"{each.rows} rows at a time"
    if later is None:
        return f"at most {first.tokens} tokens" if first.tokens is not None and tokens > first.tokens else ""
    if first.tokens not in (None, 1, begin):
        return f"{first.tokens} tokens at a time"
    if later.tokens not in (None, 1) and any(size != later.tokens for size in steps):
        return f"{later.tokens} tokens at a time after the prompt"
    calls = sum(steps) if later.tokens == 1 else len(steps)
    if first.cached or (later.cached and calls and (calls > 1 or begin != later.cached)):
        return f"a cache of {first.cached or later.cached} tokens, no more and no fewer"
    return ""


def not_taken(inputs: Sequence[Value], case: Case) -> str:
    """Return why a graph of another head than the language model's cannot be fed a case; empty if it can."""
    shapes = {value.name: value.shape for value in inputs}
    for name in ("attention_mask", "position_ids"):
        if name not in shapes and not case.attention_mask.all():
            return f"it takes no {name}, so that it is held on unpadded rows only"
    fixed = shapes.get("input_ids") or ()
    fits = len(fixed) != case.input_ids.ndim or all(
        isinstance(size, str) or size == own for size, own in zip(fixed, case.input_ids.shape, strict=True)
    )
    return "" if fits else f"it takes {list(fixed)} token ids at a time"


def by_column(case: Case) -> Case:
    """Return a case in which padding has positions too: each token's position is its column."""
    positions = np.broadcast_to(np.arange(case.input_ids.shape[1]), case.input_ids.shape)
    return replace(case, name=f"{case.name}, {BY_COLUMN}", positions=positions)


def counts_itself(interfaces: Sequence[Interface]) -> bool:
    """Tell whether an export is told which tokens are padding, but not their positions."""
    return all(each.mask is not None for each in interfaces) and any(each.positions is None for each in interfaces)


@dataclass(frozen=True)
class Wanted:
    """The cases that some exports need besides the usual ones.

    Attributes:
        exports: the interfaces of each.
        config: the architecture.
        graphs: those of a folder that are not compared with what this version writes.
    """

    exports: tuple[tuple[Interface, ...], ...]
    config: GPT2Config
    graphs: tuple[Path, ...] = ()

    def more(self, tokens: np.ndarray, level: Level) -> list[Case]:
        """Return a case of the size that each export takes, if it takes only one, and cases of many shapes.

        Args:
            tokens: token ids of the text.
            level: ``full`` has every small size.
        """
        exports = [interfaces for interfaces in self.exports if interfaces]
        cases = [own_size(interfaces[0], tokens, self.config) for interfaces in exports]
        of_any = [unpadded(self.config, tokens), *(dense(self.config, tokens) if level is Level.FULL else ())]
        cases += of_any if exports else []
        suspects = [suspects_of(each.file, each.ids.name) for interfaces in exports for each in interfaces]
        suspects += [suspects_of(file, IDS) for file in self.graphs]
        cases += around({number for each in suspects for number in each.numbers}, tokens, self.config)
        if level is Level.QUICK and feeds_every_token(self.config) and any(each.uses for each in suspects):
            cases += vocabulary(self.config)
        return list({case.name: case for case in cases if case is not None}.values())

    def shifted(self, cases: Sequence[Case]) -> list[Case]:
        """Return the padded cases with positions that count padding, if an export may count so."""
        if not any(counts_itself(interfaces) for interfaces in self.exports if interfaces):
            return []
        return [by_column(case) for case in cases if not case.attention_mask.all()]


def unpadded(config: GPT2Config, tokens: np.ndarray) -> Case:
    """Return a batch without padding, which a file may take that is not told what padding is."""
    length = min(config.n_positions, UNPADDED_TOKENS)
    chunks = (length - 2, 1, 1) if length > 2 else (length,)
    return _rows(f"{UNPADDED_ROWS} rows of {length} tokens", tokens, UNPADDED_ROWS, chunks)


def dense(config: GPT2Config, tokens: np.ndarray) -> list[Case]:
    """Return cases of every small size: numbers of rows, lengths of a prompt, tokens at a time."""
    length, few = min(config.n_positions, SHORT_TOKENS), min(config.n_positions, ROW_TOKENS)
    chunks = _last_alone(few)
    cases = [_rows(f"{rows} rows of {few} tokens", tokens, rows, chunks) for rows in range(1, max(BATCHES) + 1)]
    cases += [_rows(f"a prompt of {size} tokens", tokens, 1, (size,)) for size in range(1, length + 1)]
    for size in range(1, min(DENSE_STEP, length) + 1):
        whole, rest = divmod(length, size)
        cases.append(_rows(f"{size} tokens at a time", tokens, 1, (*[size] * whole, *([rest] if rest else []))))
    return cases


def feeds_every_token(config: GPT2Config) -> bool:
    """Tell whether every token is fed at the level ``quick`` to a graph that looks at token ids."""
    return config.vocab_size <= SMALL_VOCABULARY


def tried(numbers: Set[int], config: GPT2Config) -> list[int]:
    """Return those of the numbers that a graph compares with that cases are made of."""
    return sorted(number for number in numbers if number <= max(config.n_positions, config.vocab_size))[:NUMBERS]


def untried(numbers: Set[int], config: GPT2Config) -> list[int]:
    """Return those of the numbers that may be a size or a token, and that no case, or no batch, has."""
    possible = {number for number in numbers if number <= max(config.n_positions, config.vocab_size)}
    return sorted(number for number in possible if number not in tried(numbers, config) or number > MOST_ROWS)


def around(numbers: Set[int], tokens: np.ndarray, config: GPT2Config) -> list[Case]:
    """Return cases in which numbers that a graph compares with are the size of something, or a token.

    Args:
        numbers: whole numbers from 2 on.
    """
    chosen = tried(numbers, config)
    sizes = sorted({number + off for number in chosen for off in (-1, 0, 1)})
    few = min(config.n_positions, ROW_TOKENS)
    cases = [
        _rows(f"{size} rows of {few} tokens", tokens, size, _last_alone(few)) for size in sizes if size <= MOST_ROWS
    ]
    lengths = [size for size in sizes if size < config.n_positions]
    cases += [_rows(f"a prompt of {size} token{'s' * (size > 1)}", tokens, 1, (size,)) for size in lengths]
    cases += [_rows(f"a token after {size}", tokens, 1, (size, 1)) for size in lengths]
    cases += [_rows(f"{size} tokens after one", tokens, 1, (1, size)) for size in lengths if size > 1]
    known = [size for size in sizes if size < config.vocab_size]
    return [*cases, *(_rows(f"token {token}", np.array([token]), 1, (1,)) for token in known)]


def _last_alone(length: int) -> tuple[int, ...]:
    """Return the steps of a row of which the last token comes alone."""
    return (length - 1, 1) if length > 1 else (length,)


def _rows(name: str, tokens: np.ndarray, rows: int, chunks: tuple[int, ...]) -> Case:
    """Return a case of rows of one length, each with another text."""
    ids = np.stack([np.roll(tokens, -7 * row)[: sum(chunks)] for row in range(rows)])
    return Case(name, ids, np.ones_like(ids), chunks, shape=True)


def own_size(interface: Interface, tokens: np.ndarray, config: GPT2Config) -> Case | None:
    """Return a case of the size that a file takes; None if it takes any."""
    if interface.rows is None and interface.tokens is None:
        return None
    rows = interface.rows or 1
    length = min(interface.tokens or SHORT_TOKENS, config.n_positions)
    ids = np.resize(tokens, rows * length).reshape(rows, length)
    name = f"{rows} row{'s' if rows > 1 else ''} of {length} tokens"
    return Case(name, ids, np.ones_like(ids), (length,))
