"""Tell what the inputs and outputs of somebody else's language model mean.

Each input and output has a role. ``NAMES`` tells most roles by name; ``EXPORTERS`` tells who wrote such a file. What no
name tells, a type and a shape may. What is left over, the user says: ``--inputs NAME=ROLE``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from converter.errors import ModelFolderError
from converter.runtime.exports.signature import Signature, Value, read_signature
from reference.config import GPT2Config


class Role(StrEnum):
    """What an input or output means. These are the words that ``--inputs`` takes."""

    IDS = "input_ids"
    MASK = "attention_mask"
    POSITIONS = "position_ids"
    PAST = "past"
    BRANCH = "use_cache_branch"
    KEEP = "num_logits_to_keep"
    LOGITS = "logits"
    PRESENT = "present"


# The names of inputs, in the order in which they are tried.
NAMES: tuple[tuple[Role, str], ...] = (
    (Role.BRANCH, r"use_cache_branch"),
    (Role.KEEP, r"(num_)?logits_to_keep"),
    (Role.MASK, r".*mask.*"),
    (Role.POSITIONS, r".*pos(ition)?(_?ids?|s)?"),
    (Role.PAST, r".*(past|cache|key|value).*"),
    (Role.IDS, r"input|(.*[._])?(input_?ids|token_?ids|ids|idx|tokens?)"),
)

# The ranks of a cache: keys or values of a layer, ``[batch, n_head, slots, head_dim]``, or both of them in one value.
SEPARATE, JOINED = 4, 5


@dataclass(frozen=True)
class Exporter:
    """A program whose files are known by the names of their inputs.

    Attributes:
        name: what it is called in reports.
        past: matches the names of a cache's inputs; empty for a file without a cache.
        needs: inputs that tell it from others.
    """

    name: str
    past: str
    needs: tuple[str, ...] = ("input_ids",)


ANY_NAME = r"(?s:.*)"  # line feeds too

EXPORTERS: tuple[Exporter, ...] = (
    Exporter("gpt2onnx", r"past_key_values\.\d+\.(key|value)", ("input_ids", "num_logits_to_keep")),
    Exporter("Optimum, merged", r"past_key_values\.\d+\.(key|value)", ("input_ids", "use_cache_branch")),
    Exporter("Optimum, with cache", r"past_key_values\.\d+\.(key|value)"),
    Exporter("transformers' OnnxExporter, decode", r"input\.past_key_values\.layers\.\d+\.(keys|values)"),
    Exporter("onnxruntime's convert_to_onnx", r"past_\d+"),
    Exporter("with cache", ANY_NAME),
    Exporter("without cache", ""),
)


@dataclass(frozen=True)
class Interface:
    """How an ONNX file is fed, and where its answers are.

    Attributes:
        file, producer: the file, and the program that wrote it.
        exporter: whose names these are, or what can be said about an unknown one's.
        ids, mask, positions, branch, keep: inputs; None for one that it does not take.
        pasts: the inputs of its cache.
        presents: the outputs of its cache, in the order of ``pasts``.
        logits: the output.
        slots: the axis of a cache that counts tokens.
        names: of all its inputs and outputs.
        outputs: the names of its outputs.
    """

    file: Path
    producer: str
    exporter: str
    ids: Value
    mask: Value | None
    positions: Value | None
    branch: Value | None
    keep: Value | None
    pasts: tuple[Value, ...]
    presents: tuple[Value, ...]
    logits: Value
    slots: int
    names: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def batch_axis(self) -> int:
        """Return the axis of a cache that counts rows."""
        return (*self.pasts, *self.presents)[0].rank - SEPARATE

    @property
    def rows(self) -> int | None:
        """Return the number of rows that it takes, if it takes only one number."""
        return _fixed(self.ids, 0)

    @property
    def tokens(self) -> int | None:
        """Return the number of tokens that it takes at a time, if it takes only one number."""
        return _fixed(self.ids, 1)

    @property
    def cached(self) -> int | None:
        """Return the number of tokens that its cache must hold, if it takes only one number."""
        return _fixed(self.pasts[0], self.slots) if self.pasts else None

    @property
    def last_only(self) -> bool:
        """Tell whether it gives the logits of the last token only, though it takes several."""
        alone = self.logits.rank == 2 or _fixed(self.logits, 1) == 1
        return alone and self.tokens != 1

    @property
    def asks(self) -> bool:
        """Tell whether it can be asked for some logits only."""
        return self.keep is not None and self.keep.rank in (0, 1)

    @property
    def pads(self) -> bool:
        """Tell whether rows of different lengths can be fed side by side."""
        return self.mask is not None and self.positions is not None

    @property
    def sentence(self) -> str:
        """Return what it takes and gives, in a few words."""
        inputs = [value.name for value in (self.ids, self.mask, self.positions, self.branch, self.keep) if value]
        cache = [f"a cache of {len(self.pasts)} values"] if self.pasts else []
        return f"{self.exporter} ({', '.join([*inputs, *cache])})"


def _fixed(value: Value, axis: int) -> int | None:
    found = value.shape[axis] if value.shape is not None and len(value.shape) > axis else ""
    return found if isinstance(found, int) else None


def read_interface(file: Path, config: GPT2Config, given: Mapping[str, str] | None = None) -> Interface:
    """Read the interface of an ONNX file of a language model.

    Args:
        config: the architecture, from which the shapes of logits and cache follow.
        given: roles that the user gave, by the name of the input or output. It may name those of other files, too.

    Raises:
        ModelFolderError: the file cannot be read, there is no such role, or an input or the logits cannot be told.
    """
    signature = read_signature(file)
    said = _said(signature, given or {})
    roles = _roles(signature, said)
    ids = _only(roles, Role.IDS, signature)
    if ids is None:
        raise ModelFolderError(_unknown(signature, f"it has no {Role.IDS}", "NAME"))
    pasts = _in(roles, Role.PAST)
    logits = _logits(signature, config, said)
    presents = _presents(signature, logits, pasts, said)
    optional = {value.name: value for value in signature.optional}
    keep = next((value for name, value in optional.items() if _named(name) is Role.KEEP), None)
    return Interface(
        file,
        signature.producer,
        _exporter(signature, pasts),
        ids,
        _only(roles, Role.MASK, signature),
        _only(roles, Role.POSITIONS, signature),
        _only(roles, Role.BRANCH, signature),
        _only(roles, Role.KEEP, signature) or keep,
        pasts,
        presents,
        logits,
        _slots(file, (*pasts, *presents), config),
        signature.names,
        tuple(value.name for value in signature.outputs),
    )


def _said(signature: Signature, given: Mapping[str, str]) -> dict[str, Role]:
    """Return the roles that the user gave for values of this file."""
    for name, role in given.items():
        if role not in list(Role):
            raise ModelFolderError(f"--inputs {name}={role}: there is no role {role}; the roles are {', '.join(Role)}")
    return {name: Role(role) for name, role in given.items() if name in signature.names}


def _roles(signature: Signature, said: Mapping[str, Role]) -> dict[Value, Role]:
    """Return the role of each input: as the user says, by its name, or by its type.

    A file of one integer input, whatever it is called, takes token ids.
    """
    roles: dict[Value, Role] = {}
    for value in signature.inputs:
        role = said.get(value.name) or _named(value.name)
        if role is not None and (value.name in said or _fits(value, role)):
            roles[value] = role
        elif _fits(value, Role.PAST):
            roles[value] = Role.PAST
    left = [value for value in signature.inputs if value not in roles]
    if len(left) == 1 and Role.IDS not in roles.values() and _fits(left[0], Role.IDS):
        roles[left[0]] = Role.IDS
        left = []
    if left:
        raise ModelFolderError(_unknown(signature, f"the input {left[0].name} cannot be told", left[0].name))
    return roles


def _named(name: str) -> Role | None:
    return next((role for role, pattern in NAMES if re.fullmatch(pattern, name, re.IGNORECASE)), None)


def _fits(value: Value, role: Role) -> bool:
    """Tell whether an input can have a role, by its type and its number of dimensions."""
    if role is Role.PAST:
        return value.is_float and value.rank in (SEPARATE, JOINED)
    if role is Role.BRANCH:
        return not value.is_float
    if role is Role.KEEP:
        return value.is_whole
    two = value.rank in (2, -1)
    return two and (value.is_whole or (role is Role.MASK and value.type is not None))


def _in(roles: Mapping[Value, Role], role: Role) -> tuple[Value, ...]:
    return tuple(value for value, found in roles.items() if found is role)


def _only(roles: Mapping[Value, Role], role: Role, signature: Signature) -> Value | None:
    """Return the input with this role, or None; refuse a file in which several have it."""
    found = _in(roles, role)
    if len(found) > 1:
        several = " and ".join(value.name for value in found)
        raise ModelFolderError(_unknown(signature, f"{several} both look like {role}", found[-1].name))
    return found[0] if found else None


def _logits(signature: Signature, config: GPT2Config, said: Mapping[str, Role]) -> Value:
    """Return the output that is the logits: by what the user says, by its name, or as the only one of their shape."""
    outputs = signature.outputs
    chosen = [value for value in outputs if said.get(value.name) is Role.LOGITS]
    chosen = chosen or [value for value in outputs if value.name == Role.LOGITS]
    shaped = [value for value in outputs if value.is_float and value.rank in (2, 3, -1) and value.name not in said]
    chosen = chosen or [value for value in shaped if value.shape is None or value.shape[-1] == config.vocab_size]
    chosen = chosen or [value for value in shaped if value.shape and isinstance(value.shape[-1], str)]
    if len(chosen) != 1:
        why = (
            f"none of its outputs is logits over {config.vocab_size} tokens"
            if not chosen
            else "its logits cannot be told"
        )
        raise ModelFolderError(_unknown(signature, why, outputs[0].name, Role.LOGITS))
    return chosen[0]


def _presents(
    signature: Signature, logits: Value, pasts: Sequence[Value], said: Mapping[str, Role]
) -> tuple[Value, ...]:
    """Return the outputs of the cache, in the order of its inputs."""
    told = [value for value in signature.outputs if said.get(value.name) is Role.PRESENT]
    ranks = {value.rank for value in pasts} or {SEPARATE, JOINED}
    found = told or [
        value
        for value in signature.outputs
        if value != logits and value.is_float and value.rank in ranks and _is_cache(value.name, pasts)
    ]
    if pasts and len(found) != len(pasts):
        why = f"its cache has {len(pasts)} inputs and {len(found)} outputs"
        raise ModelFolderError(_unknown(signature, why, signature.outputs[-1].name, Role.PRESENT))
    return tuple(found)


def _is_cache(name: str, pasts: Sequence[Value]) -> bool:
    """Tell whether an output's name is a cache's. Beside a cache as input, any name of four or five dimensions will do,
    unless it says what else it is.
    """
    if re.search(r"attentions|hidden_states", name):
        return False
    return bool(pasts) or re.search(r"past|present|cache|key|value", name, re.IGNORECASE) is not None


def _slots(file: Path, cache: Iterable[Value], config: GPT2Config) -> int:
    """Return the axis of a cache that counts tokens.

    Raises:
        ModelFolderError: the cache is another model's.
    """
    axis = SEPARATE - 2
    for value in cache:
        assert value.shape is not None
        lead = value.rank - SEPARATE
        heads, head_dim = value.shape[lead + 1], value.shape[lead + 3]
        axis = lead + 2
        if heads != config.n_head and value.shape[lead + 2] == config.n_head:
            heads, axis = config.n_head, lead + 1  # [batch, slots, n_head, head_dim]
        wrong = (isinstance(heads, int) and heads != config.n_head) or (
            isinstance(head_dim, int) and head_dim != config.head_dim
        )
        if wrong:
            raise ModelFolderError(
                f"{file} is another model: its cache {value} is not of {config.n_head} heads of {config.head_dim}"
            )
    return axis


def _exporter(signature: Signature, pasts: Sequence[Value]) -> str:
    """Return the name of the first exporter whose names these are."""
    names = {value.name for value in (*signature.inputs, *signature.optional)}
    return next(
        row.name
        for row in EXPORTERS
        if bool(row.past) == bool(pasts)
        and (row.past == ANY_NAME or not row.past or names.issuperset(row.needs))
        and all(re.fullmatch(row.past, value.name) for value in pasts)
    )


def _unknown(signature: Signature, why: str, name: str, role: Role = Role.IDS) -> str:
    mend = f"say what is what: --inputs {name}={role},…"
    return f"{signature.file} has an unknown interface, as {why}; it {signature}; {mend}"
