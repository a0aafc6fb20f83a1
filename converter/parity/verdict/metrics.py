"""Measure how far a leg's logits are from the truth: as numbers, as decisions, and as distributions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reference.head import LM

# The positions that are compared together; this keeps the float64 copies of wide vocabularies small.
BLOCK_POSITIONS = 64

FLOAT32_EPSILON = float(np.finfo(np.float32).eps)

# Errors are counted in bins by the leading bits of their float32: 16 an octave, so that a percentile is exact to 6 %.
BIN_SHIFT = 19
BINS = 2 ** (31 - BIN_SHIFT)

TOP_K = 5  # the number of likeliest tokens that are compared

# Beyond this distance from the truth, the formula that is exact for small differences may overflow.
SMALL_DIFFERENCE = 1.0


@dataclass(frozen=True)
class Distance:
    """The difference between a leg and the truth at each position, in units of the logits.

    Fields are ``[positions]`` float64 unless another shape is given. Where the leg's logits are not finite, the errors
    are infinite.

    Attributes:
        rms, maximum: the RMS and the largest of the errors over the vocabulary.
        flip: the truth's logit of its own likeliest token minus that of the leg's; NaN if both are the same token.
        overlap: the share of the truth's ``TOP_K`` likeliest tokens that are among the leg's.
        kl: the KL divergence of the leg's distribution from the truth's, KL(truth‖leg), in nats.
        log_p_true, log_p: the log-probability of the token that follows in the text; NaN if none does.
        likeliest, p_likeliest: the leg's ``TOP_K`` likeliest tokens and their probabilities, ``[positions, TOP_K]``; -1
            and NaN if the vocabulary is smaller, or the leg's logits are not finite.
        histogram: the number of errors in each bin, ``[BINS]`` int64.
        misshapen: whether the logits have another shape than the truth.
    """

    rms: np.ndarray
    maximum: np.ndarray
    flip: np.ndarray
    overlap: np.ndarray
    kl: np.ndarray
    log_p_true: np.ndarray
    log_p: np.ndarray
    likeliest: np.ndarray
    p_likeliest: np.ndarray
    histogram: np.ndarray
    misshapen: bool = False

    @property
    def total_rms(self) -> float:
        """Return the root mean square over all positions."""
        return math.sqrt(float(np.mean(self.rms**2))) if len(self.rms) else 0.0

    @property
    def total_maximum(self) -> float:
        """Return the largest error."""
        return float(self.maximum.max(initial=0.0))

    @property
    def flips(self) -> np.ndarray:
        """Return the margins of the positions whose likeliest token is another one."""
        return self.flip[~np.isnan(self.flip)]

    def percentile(self, share: float) -> float:
        """Return the error that this share of all logits does not exceed."""
        if not math.isfinite(self.total_maximum):
            return math.inf
        counted = self.histogram.cumsum()
        found = int(np.searchsorted(counted, share * counted[-1]))
        edge = float(bin_edges()[found + 1]) if found else 0.0
        return edge if edge <= self.total_maximum else self.total_maximum  # an edge of NaN compares as False


BY_POSITION = ("rms", "maximum", "flip", "overlap", "kl", "log_p_true", "log_p", "likeliest", "p_likeliest")


def bin_edges() -> np.ndarray:
    """Return the edges of the histogram's bins, ``[BINS + 1]``, in units of the logits; the last are not finite."""
    with np.errstate(invalid="ignore"):  # the last bins are those of NaN
        return (np.arange(BINS + 1, dtype=np.uint32) << BIN_SHIFT).view(np.float32).astype(np.float64)


def joined(distances: Iterable[Distance]) -> Distance:
    """Return several distances as one."""
    parts = [_lost(0), *distances]
    by_position = {name: np.concatenate([getattr(part, name) for part in parts]) for name in BY_POSITION}
    histogram = sum((part.histogram for part in parts), np.zeros(BINS, np.int64))
    return Distance(**by_position, histogram=histogram, misshapen=any(part.misshapen for part in parts))


def _lost(positions: int) -> Distance:
    """Return the distance of logits that cannot be compared."""
    lost, none, unknown = np.full(positions, math.inf), np.zeros(positions), np.full(positions, math.nan)
    ranks = np.full((positions, TOP_K), -1), np.full((positions, TOP_K), math.nan)
    return Distance(lost, lost, lost, none, lost, unknown, unknown, *ranks, _bins([]))


def compare(truth: np.ndarray, logits: np.ndarray, real: np.ndarray, following: np.ndarray) -> Distance:
    """Return the distance of ``logits`` from ``truth`` at the ``real`` positions.

    Args:
        truth, logits: ``[batch, tokens, vocab_size]``.
        real: ``[batch, tokens]`` bool.
        following: ``[batch, tokens]``: the token that comes next in the text; -1 if none does.
    """
    if logits.shape != truth.shape:
        return replace(_lost(1), misshapen=True)
    whole = bool(real.all())  # then nothing needs to be copied
    chosen = (array.reshape(-1, *array.shape[2:]) if whole else array[real] for array in (truth, logits, following))
    rows = [torch.from_numpy(np.ascontiguousarray(array)) for array in chosen]
    return joined(_block(*block) for block in zip(*(part.split(BLOCK_POSITIONS) for part in rows), strict=True))


def _block(truth: Tensor, logits: Tensor, following: Tensor) -> Distance:
    """Return the distance at a few positions; the logits are ``[positions, vocab_size]``."""
    leg = logits.double()
    difference = leg - truth
    absolute = difference.abs()
    largest = absolute.amax(dim=-1)
    finite = largest.isfinite()  # the truth is
    if not finite.all():
        leg = torch.where(finite[:, None], leg, truth)
        difference = leg - truth
        absolute = difference.abs()
        largest = absolute.amax(dim=-1)
    kl, shift, normaliser = _divergence(truth, leg, difference, largest)

    best, chosen = truth.argmax(dim=-1, keepdim=True), leg.argmax(dim=-1, keepdim=True)
    margin = (truth.gather(1, best) - truth.gather(1, chosen)).squeeze(1)
    k = min(TOP_K, truth.size(-1))
    ours, theirs = truth.topk(k).indices, leg.topk(k).indices
    overlap = (ours[:, :, None] == theirs[:, None, :]).any(dim=-1).double().mean(dim=-1)
    p_theirs = (leg.gather(1, theirs) - (normaliser + shift)[:, None]).exp()
    beyond = (0, TOP_K - k)

    token = following.clamp(min=0)[:, None]
    log_p_true = truth.gather(1, token).squeeze(1) - normaliser
    log_p = leg.gather(1, token).squeeze(1) - normaliser - shift
    known, lost = following >= 0, ~finite

    def at_losses(values: Tensor, value: float) -> np.ndarray:
        return values.masked_fill(lost if values.dim() == 1 else lost[:, None], value).numpy()

    return Distance(
        rms=at_losses(difference.square().mean(dim=-1).sqrt(), math.inf),
        maximum=at_losses(largest, math.inf),
        flip=at_losses(margin.masked_fill(best.squeeze(1) == chosen.squeeze(1), math.nan), math.inf),
        overlap=at_losses(overlap, 0.0),
        kl=at_losses(kl, math.inf),
        log_p_true=log_p_true.masked_fill(~known, math.nan).numpy(),
        log_p=at_losses(log_p, -math.inf) + np.where(known, 0.0, math.nan),
        likeliest=at_losses(F.pad(theirs, beyond, value=-1), -1),
        p_likeliest=at_losses(F.pad(p_theirs, beyond, value=math.nan), math.nan),
        histogram=_bins((absolute if finite.all() else absolute[finite]).numpy()),
    )


def _divergence(truth: Tensor, leg: Tensor, difference: Tensor, largest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return KL(truth‖leg), the leg's log Σ exp minus the truth's, and the truth's.

    With δ the difference and p the truth's probabilities, KL = log Σ p·exp(δ) − Σ p·δ. For small δ the logarithm is
    taken of 1 + Σ p·(exp(δ) − 1), which keeps all digits of divergences as small as 1e-14.

    Args:
        largest: the largest of the differences at each position, without their signs.
    """
    peak = truth.amax(dim=-1)
    weights = (truth - peak[:, None]).exp_()  # the probabilities, but for their sum
    total = weights.sum(dim=-1)
    normaliser = peak + total.log()
    large = largest >= SMALL_DIFFERENCE
    small = difference.clamp(max=SMALL_DIFFERENCE) if large.any() else difference
    shift = (_dot(weights, small.expm1()) / total).log1p()
    if large.any():
        shift = torch.where(large, leg.logsumexp(dim=-1) - normaliser, shift)
    return (shift - _dot(weights, difference) / total).clamp(min=0.0), shift, normaliser


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Return the product of the rows of two matrices, ``[positions]``."""
    return torch.einsum("pv,pv->p", first, second)


def _bins(errors: np.ndarray | list[float]) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 counts as infinite
        bits = np.asarray(errors).astype(np.float32).ravel().view(np.uint32) >> BIN_SHIFT
    return np.bincount(bits.astype(np.int64), minlength=BINS)


def scale(truths: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], head: str = LM) -> float:
    """Return the scale of the logits: the RMS over positions of their standard deviation over the vocabulary.

    Their size would not do: real GPT-2 logits share a large offset that softmax ignores. The outputs of other heads
    have no such offset, or are single numbers. For them the size is used.
    """
    spread = np.var if head == LM else lambda values, axis: np.mean(values**2, axis=axis)
    variances = np.concatenate([spread(truth[real[name]], axis=-1) for name, truth in truths.items()])
    return max(math.sqrt(float(variances.mean())), FLOAT32_EPSILON)
