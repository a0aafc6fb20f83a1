"""The precisions that a model folder can hold, one row each: names, files, quantization, budget, colour.

The table costs nothing to import. ``write.py`` turns weights into a precision, ``graph/layers.py`` has its operators.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from converter.errors import ConfigError

# MatMulNBits takes no smaller blocks.
LEAST_BLOCK = 16


@dataclass(frozen=True)
class Blocks:
    """How a weight is cut into blocks and quantized.

    Attributes:
        bits: the bits of a number, 4 or 8.
        size: the numbers in a block, a power of two; a narrow weight has smaller blocks.
        symmetric: whether the zero point is the middle of the range; otherwise each block has its own.
    """

    bits: int
    size: int
    symmetric: bool

    def size_for(self, width: int) -> int:
        """Return the numbers in a block of a weight with ``width`` inputs: no more than are needed to hold them."""
        size = self.size
        while size > LEAST_BLOCK and size // 2 >= width:
            size //= 2
        return size

    def count(self, width: int) -> int:
        """Return the number of blocks in a row."""
        return -(-width // self.size_for(width))

    def row_bytes(self, width: int) -> int:
        """Return the bytes that the numbers of a row take, with the last block filled up."""
        return self.count(width) * self.size_for(width) * self.bits // 8

    def zero_point_bytes(self, width: int) -> int:
        """Return the bytes that the zero points of a row take."""
        return -(-self.count(width) * self.bits // 8)

    @property
    def middle(self) -> int:
        """Return the zero point of symmetric blocks."""
        return 1 << (self.bits - 1)

    @property
    def most(self) -> int:
        """Return the largest number."""
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class Scheme:
    """How a model is quantized.

    Attributes:
        linear: the blocks of the projections.
        head: the blocks of the output head and of the embedding.
    """

    linear: Blocks
    head: Blocks


@dataclass(frozen=True)
class Budget:
    """What a lossy precision may cost, as a distribution against the float64 truth.

    Attributes:
        kl_mean: nats a token.
        perplexity_ratio: the leg's perplexity over the truth's.
        rms: the RMS error, as a share of the logits' scale. A head that gives numbers and no probabilities has nothing
            else.
    """

    kl_mean: float
    perplexity_ratio: float
    rms: float


@dataclass(frozen=True)
class Precision:
    """One precision of a model folder.

    Attributes:
        name: its name in ``--precision`` and in the manifest.
        suffix: the end of the graph's file name, as transformers.js wants it.
        dtype: the type of the cache, and of the weights that are not quantized.
        scheme: how the other weights are quantized; None if none is.
        budget: what it may cost; None if it is held against the noise floor instead.
        budget_name: the budget's name in ``--limit NAME.kl_mean=…``.
        colour: of its line in a plot, a variable of the page's stylesheet.
        js_dtype: its name in transformers.js.
        said: what its weights are, for the model card.
        effort: the time it takes to write, as a multiple of float32.
    """

    name: str
    suffix: str
    dtype: str
    scheme: Scheme | None
    budget: Budget | None
    budget_name: str
    colour: str
    js_dtype: str
    said: str
    effort: int

    @property
    def model(self) -> str:
        """Return the graph's file in a model folder."""
        return f"onnx/model{self.suffix}.onnx"

    @property
    def data(self) -> str:
        """Return the file of its weights in a model folder."""
        return f"{self.model}_data"


# Sizes of blocks and symmetry are the fastest at the quality asked for: docs/precisions.md has the figures.
INT8 = Scheme(Blocks(8, 128, symmetric=True), Blocks(8, 128, symmetric=True))
INT4 = Scheme(Blocks(4, 32, symmetric=False), Blocks(8, 128, symmetric=True))

# Limits of the RMS error. Ten small random models with other heads were at most at 2.7e-3 of the scale in float16,
# 5.1e-2 in int8 and 0.47 in int4; the bundled trained model is at 1.8e-4, 6.8e-3 and 2.6e-2. An answer that has nothing
# to do with the truth is at 1.4.
RMS_FLOAT16, RMS_BFLOAT16, RMS_INT8, RMS_INT4 = 0.01, 0.1, 0.2, 1.0

# The precision that is held against the noise floor.
FULL = "fp32"

# Trained models were seen at 4e-5 to 9.4e-4 nats. Two thirds of that come from activations of 8 bits, which cost the
# more, the further a model's logits lie apart. Ratios of perplexities stayed within 1.0005.
INT8_BUDGET = Budget(kl_mean=2e-3, perplexity_ratio=1.005, rms=RMS_INT8)
FLOAT16_BUDGET = Budget(kl_mean=1e-5, perplexity_ratio=1.001, rms=RMS_FLOAT16)

# float16 keeps 11 bits, of weights and of every intermediate result. What integers cost depends on the blocks. Users
# notice the perplexity ratio: a twentieth is about what a model of the next smaller size loses.
PRECISIONS = {
    row.name: row
    for row in (
        Precision(
            FULL, "", "float32", None, None, "", "ink", "fp32", "float32, bit for bit the source's", effort=1
        ),
        Precision(
            "fp16", "_fp16", "float16", None, FLOAT16_BUDGET, "float16", "half-1",
            "fp16", "float16; logits and softmax in float32", effort=2,
        ),
        Precision(
            "int8", "_int8", "float32", INT8, INT8_BUDGET, "int8", "lossy-1",
            "int8", "whole numbers of 8 bits", effort=3,
        ),
        Precision(
            "int4", "_q4", "float32", INT4, Budget(1e-1, perplexity_ratio=1.05, rms=RMS_INT4), "int4", "lossy-2",
            "q4", "whole numbers of 4 bits, embedding and head of 8", effort=4,
        ),
    )
}  # fmt: skip

# bfloat16 keeps 8 bits. No graph is written in it, but Hugging Face's own bfloat16 is measured.
BUDGETS = {
    "bfloat16": Budget(kl_mean=1e-2, perplexity_ratio=1.02, rms=RMS_BFLOAT16),
    **{row.budget_name: row.budget for row in PRECISIONS.values() if row.budget},
}


def parse(names: str | Iterable[str]) -> tuple[Precision, ...]:
    """Return the rows of ``"fp32,int8"`` or of a list of names, in the table's order.

    Raises:
        ConfigError: there is no such precision, or none is named.
    """
    asked = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for name in asked:
        if name not in PRECISIONS:
            raise ConfigError(f"there is no precision {name!r}; expected some of {', '.join(PRECISIONS)}")
    if not asked:
        raise ConfigError(f"no precision is named; expected some of {', '.join(PRECISIONS)}")
    return tuple(row for row in PRECISIONS.values() if row.name in asked)
