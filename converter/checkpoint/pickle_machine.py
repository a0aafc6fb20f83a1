"""Read pickles without importing or calling anything: a machine for the few opcodes that checkpoints use.

A pickle is a program for a stack machine. This machine only collects each tensor's storage, offset, shape and strides;
it can call nothing. The opcodes are described at https://docs.python.org/3/library/pickletools.html.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from converter.checkpoint.tensor import DTYPES
from converter.errors import CheckpointError

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
}  # fmt: skip

# The errors that a damaged pickle causes in the machine.
PICKLE_DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, EOFError, MemoryError)

INTEGER_BITS = 256  # the longest in a checkpoint is in the state of a random number generator


class Storage(NamedTuple):
    """A storage, as a pickle describes it; ``key`` leads to its bytes."""

    key: str
    dtype: str
    size: int  # elements


class TensorRef(NamedTuple):
    """A tensor, as a pickle describes it; offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Global(NamedTuple):
    """A class or function that a pickle names. It is only a name here and cannot be called."""

    module: str
    name: str


@dataclass
class Inert:
    """An object of a class that a pickle names. It is only described, never created.

    The arguments of its constructor are dropped.
    """

    kind: Global
    attributes: dict[str | int, Any] = field(default_factory=dict)


ORDERED_DICT = Global("collections", "OrderedDict")
REBUILD_TENSOR = (Global("torch._utils", "_rebuild_tensor_v2"), Global("torch._utils", "_rebuild_tensor"))
REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")
STORAGE_TYPES = {Global("torch", name): dtype for name, dtype in STORAGES.items()}
KNOWN_GLOBALS = {ORDERED_DICT, *REBUILD_TENSOR, REBUILD_PARAMETER, *STORAGE_TYPES}

# What a training checkpoint names in addition: tensors with attributes, and data that becomes ``Inert``.
TORCH_SIZE = Global("torch", "Size")
REBUILD_WITH_STATE = (
    Global("torch._tensor", "_rebuild_from_type_v2"),  # (builder, type, its arguments, attributes)
    Global("torch._utils", "_rebuild_parameter_with_state"),  # (tensor, …, attributes)
)
# Classes of the standard library whose objects lie beside the weights; torch.save writes the names of Python 2.
PLAIN_CLASSES = {
    **dict.fromkeys(
        ("builtins", "__builtin__"),
        "bytearray complex dict float frozenset int list long object range set slice str tuple unicode xrange",
    ),
    "collections": "Counter defaultdict deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "functools": "partial",
    "typing": "Any",
    "uuid": "UUID",
}
NUMPY_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
INERT = {
    Global("argparse", "Namespace"), Global("torch", "device"), Global("torch", "Tensor"),
    Global("torch.nn.parameter", "Parameter"), Global("_codecs", "encode"), Global("_io", "BytesIO"),
    Global("numpy", "dtype"), Global("numpy", "ndarray"),
    *(Global(core, name) for core in NUMPY_CORES for name in ("scalar", "_reconstruct")),
    *(Global("torch", dtype) for dtype in DTYPES),
    *(Global(module, name) for module, names in PLAIN_CLASSES.items() for name in names.split()),
    *(Global(module, f"{system}Path") for module in ("pathlib", "pathlib._local") for system in ("Posix", "Windows")),
}  # fmt: skip
# The packages whose objects lie beside the weights: arguments of a training, configs, hyper-parameters.
INERT_PACKAGES = (
    "megatron.", "lightning.", "lightning_fabric.", "pytorch_lightning.", "omegaconf.", "transformers.", "accelerate.",
)  # fmt: skip
TRAINING_GLOBALS = {*KNOWN_GLOBALS, *INERT, TORCH_SIZE, *REBUILD_WITH_STATE}


STATE_DICT = "save model.state_dict() with torch.save instead"  # what to do about a file that holds more


class Machine:
    """A stack machine that follows one pickle. Values are numbers, texts, lists, dicts, and the tuples above."""

    mend = STATE_DICT

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, opened: BinaryIO) -> Any:
        """Return the value that the pickle at the current place of ``opened`` describes.

        Raises:
            CheckpointError: it is damaged, or needs more than plain tensors do.
        """
        try:
            for opcode, argument, _ in pickletools.genops(opened):
                if opcode.name not in INSTRUCTIONS:
                    raise ValueError(f"the instruction {opcode.name}, which plain tensors do not need")
                INSTRUCTIONS[opcode.name](self, argument)
            return self.stack.pop()
        except CheckpointError:
            raise
        except PICKLE_DAMAGE as error:
            raise CheckpointError(
                f"{self.file} is not a file written by torch.save, or is truncated or corrupt ({error}); "
                f"download or save it again"
            ) from error

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def push_integer(self, value: int) -> None:
        """Put an integer on the stack. A huge one is refused, as it could not even be written into a message."""
        if value.bit_length() > INTEGER_BITS:
            raise ValueError(f"an integer of more than {INTEGER_BITS} bits")
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        """Remove and return the values since the last mark."""
        mark = self.marks.pop()
        values, self.stack[mark:] = self.stack[mark:], []
        return values

    def pop(self, count: int) -> list[Any]:
        """Remove and return the last ``count`` values."""
        if len(self.stack) < count:
            raise IndexError("an empty stack")
        values, self.stack[-count:] = self.stack[-count:], []
        return values

    def name_global(self, module: str, name: str) -> None:
        """Put a class or function on the stack, if plain tensors need it."""
        # Only texts are hashed: a tuple that holds the same tuple twice, forty levels deep, would take forever.
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a global whose name is not a text")
        found = Global(module, name)
        if not self.knows(found):
            raise CheckpointError(
                f"{self.file} asks to import {module}.{name}; only plain tensors are read, nothing is executed: "
                f"{self.mend}"
            )
        self.push(found)

    def knows(self, found: Global) -> bool:
        """Tell whether a pickle may name this class or function."""
        return found in KNOWN_GLOBALS

    def set_items(self, pairs: list[Any]) -> None:
        """Fill the dict on top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, dict) or not all(isinstance(key, str | int) for key in pairs[::2]):
            raise TypeError("a dict with keys that are not names")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def extend(self, values: list[Any]) -> None:
        """Fill the list on top of the stack."""
        if not isinstance(self.stack[-1], list):
            raise TypeError("an append to something that is not a list")
        self.stack[-1].extend(values)

    def name_storage(self) -> None:
        """Replace a persistent id on the stack with the storage that it names."""
        kind, storage_type, key, _location, size, *_ = self.stack.pop()
        named = isinstance(storage_type, Global) and storage_type in STORAGE_TYPES
        if kind != "storage" or not named or not isinstance(key, str):
            raise ValueError("a persistent id that is not a storage")
        if type(size) is not int or size < 0:
            raise ValueError("a storage of malformed size")
        self.push(self.storages.setdefault(key, Storage(key, STORAGE_TYPES[storage_type], size)))

    def reduce(self) -> None:
        """Replace a function and its arguments on the stack with the function's result. Nothing is called."""
        function, arguments = self.pop(2)
        if not isinstance(function, Global):
            raise TypeError("a call of a function that builds no tensor")
        self.call(function, arguments)

    def call(self, function: Global, arguments: Any) -> None:
        """Put on the stack what ``function`` would return. Only known functions are accepted."""
        if function in REBUILD_TENSOR:
            self.push(rebuild_tensor(*arguments))
        elif function == REBUILD_PARAMETER and isinstance(arguments[0], TensorRef):
            self.push(arguments[0])
        elif function == ORDERED_DICT:
            self.push({})
            for pair in arguments[0] if arguments else ():
                self.set_items(list(pair))
        else:
            raise TypeError("a call of a function that builds no tensor")

    def build(self) -> None:
        """Drop the attributes of a state dict (its ``_metadata``), which are not needed. Refuse any others."""
        if not isinstance(self.stack[-2], dict):
            raise TypeError("attributes for an object that has none")
        self.stack.pop()


class TrainingMachine(Machine):
    """A machine that also follows the rest of a training checkpoint. It still creates nothing and calls nothing."""

    mend = "save {'model': model.state_dict(), …} of plain values instead"

    def knows(self, found: Global) -> bool:
        """Tell whether a pickle may name this class or function. Classes of inert data are also known."""
        return found in TRAINING_GLOBALS or _is_inert(found)

    def call(self, function: Global, arguments: Any) -> None:
        """Put on the stack what ``function`` would return.

        Sizes, inert objects and tensors with attributes are also known. The attributes are dropped.
        """
        if function == TORCH_SIZE:
            self.push(tuple(arguments[0]))
        elif function == REBUILD_WITH_STATE[0]:
            super().call(arguments[0], arguments[2])
        elif function == REBUILD_WITH_STATE[1]:
            super().call(REBUILD_PARAMETER, arguments)
        elif _is_inert(function):
            self.push(Inert(function))
        else:
            super().call(function, arguments)

    def set_items(self, pairs: list[Any]) -> None:
        """Fill the dict on top of the stack, or an inert object that is a dict of a class of its own.

        What has no name as its key is dropped: no weight is found under it.
        """
        named = [pair for pair in zip(pairs[::2], pairs[1::2], strict=True) if isinstance(pair[0], str | int)]
        target = self.stack[-1]
        self.stack.append(target.attributes if isinstance(target, Inert) else target)
        super().set_items([value for pair in named for value in pair])
        self.stack.pop()

    def extend(self, values: list[Any]) -> None:
        """Fill the list on top of the stack. Drop what would go into an inert object."""
        if not isinstance(self.stack[-1], Inert):
            super().extend(values)

    def build(self) -> None:
        """Keep the attributes of an inert object if they are a plain dict. Drop others, such as a numpy array's."""
        target, state = self.stack[-2:]
        if not isinstance(target, Inert):
            super().build()
            return
        self.stack.pop()
        if isinstance(state, dict):
            target.attributes |= state


class StateMachine(TrainingMachine):
    """The same for a file of which only a state dict is wanted."""

    mend = STATE_DICT


def _is_inert(found: object) -> bool:
    return isinstance(found, Global) and (found in INERT or found.module.startswith(INERT_PACKAGES))


def rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorRef:
    """Return the tensor that ``torch._utils._rebuild_tensor_v2`` would build.

    That function's last argument marks views that are negated or conjugated lazily.
    """
    ref = TensorRef(storage, offset, tuple(shape), tuple(strides))
    sound = isinstance(storage, Storage) and len(ref.shape) == len(ref.strides)
    if not sound or not all(type(n) is int and n >= 0 for n in (offset, *ref.shape, *ref.strides)):
        raise ValueError("a tensor with malformed offset, shape or strides")
    if len(rest) > 2 and rest[2]:
        raise ValueError("a tensor that is a lazy negation or conjugation; call resolve_neg() or resolve_conj() on it")
    return ref


def _put(machine: Machine, index: int | None) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


Instruction = Callable[[Machine, Any], None]

NUMBERS_AND_TEXTS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
)  # fmt: skip

# Opcode, as pickletools names it → what the machine does.
INSTRUCTIONS: dict[str, Instruction] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    **dict.fromkeys(NUMBERS_AND_TEXTS, Machine.push),
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), Machine.push_integer),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    "APPEND": lambda m, _: m.extend(m.pop(1)),
    "APPENDS": lambda m, _: m.extend(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.push(m.memo[index])),
    "GLOBAL": lambda m, names: m.name_global(*names.split(" ")),
    "STACK_GLOBAL": lambda m, _: m.name_global(*m.pop(2)),
    "BINPERSID": lambda m, _: m.name_storage(),
    "REDUCE": lambda m, _: m.reduce(),
    "NEWOBJ": lambda m, _: m.reduce(),  # a class instead of a function
    "BUILD": lambda m, _: m.build(),
}
