"""Generate text with the from-scratch model: the plain loop with which ONNX Runtime's is compared."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.errors import GPT2Error
from reference.model import GPT2


@torch.no_grad()
def generate(
    model: GPT2,
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_token_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue ``input_ids`` (``[B, S]``, padded on the left) by up to ``max_new_tokens`` tokens.

    Args:
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
        top_k: draw from the k likeliest tokens; 0 for all.
        top_p: draw from the fewest tokens whose probabilities reach p (Holtzman et al., arXiv:1904.09751).
        eos_token_id: a row that produces it is filled with it; generation ends when every row has.

    Returns:
        ``[B, S + new]``, with the prompts.

    Raises:
        GPT2Error: the prompt is empty, an option is out of range, or more than ``n_positions`` are needed.
    """
    if not (temperature >= 0 and top_k >= 0 and 0 < top_p <= 1 and max_new_tokens >= 0 and input_ids.size(1) > 0):
        raise GPT2Error(
            f"temperature {temperature}, top_k {top_k}, top_p {top_p}, max_new_tokens {max_new_tokens} for a prompt of "
            f"{input_ids.size(1)} tokens; expected 0 or more of each, top_p in (0, 1], and a token to start from"
        )
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    total = int(attention_mask.sum(dim=1).max()) + max_new_tokens
    if total > model.config.n_positions:
        raise GPT2Error(f"prompt and new tokens are {total}; the model has {model.config.n_positions} positions")
    done = torch.zeros(input_ids.size(0), dtype=torch.bool, device=input_ids.device)
    step, past = input_ids, None
    for _ in range(max_new_tokens):
        logits, past, _loss = model(step, past_key_values=past, attention_mask=attention_mask)
        token = choose(logits[:, -1], temperature, top_k, top_p, generator)  # [B]
        if eos_token_id is not None:
            token = token.masked_fill(done, eos_token_id)
            done |= token == eos_token_id
        step = token[:, None]  # [B, 1]
        input_ids = torch.cat((input_ids, step), dim=1)
        attention_mask = torch.cat((attention_mask, torch.ones_like(step)), dim=1)
        if done.all():
            break
    return input_ids


def choose(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None = None
) -> Tensor:
    """Return one token for each row of ``[B, V]`` logits."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k:
        kth = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1:
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        beyond = ordered.cumsum(dim=-1) - ordered >= top_p  # the token that crosses p is kept
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits.softmax(dim=-1).multinomial(1, generator=generator)[:, 0]
