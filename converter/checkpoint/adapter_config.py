"""Read the ``adapter_config.json`` of a PEFT LoRA adapter: check its values, find the modules that it changes.

The keys are those of PEFT's LoraConfig (https://github.com/huggingface/peft, src/peft/tuners/lora/config.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.adapter_names import BASES, CONV1D, PLAIN, REPLACED, TIED
from converter.checkpoint.names import canonical
from converter.errors import CheckpointError

# The keys that the merge uses, and those that describe the training and leave no trace in a merged model.
USED = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "bias",
    "modules_to_save", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "init_lora_weights", "fan_in_fan_out", "ensure_weight_tying", "trainable_token_indices",
}  # fmt: skip
WITHOUT_TRACE = {
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version",
    "lora_dropout", "megatron_core", "runtime_config", "qalora_group_size", "eva_config", "corda_config",
    "loftq_config", "lora_ga_config",
}  # fmt: skip

# The values of init_lora_weights that can be merged. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) also change the
# base weights, which the adapter does not hold.
BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")
BIASES = ("none", "all", "lora_only")

# PEFT's default, where the config names no modules.
DEFAULT_TARGETS = ["c_attn"]


def replaces(values: Mapping[str, Any], known: str, module: str, part: str) -> bool:
    """Tell whether the config says that this tensor was trained as a whole, and so replaces the base's."""
    if part in BASES:
        return module in TIED  # if one is targeted, PEFT saves the base weights of both
    if REPLACED[part] == "bias" and values.get("bias", "none") != "none":
        return True
    return part in PLAIN and (module in TIED or saves(values, known))


def saves(values: Mapping[str, Any], known: str) -> bool:
    """Tell whether a module is one of ``modules_to_save``, or lies in one. PEFT compares the ends of names.

    If it keeps wte and lm_head tied, its config names one of the two for both.
    """
    parts = known.split(".")
    inside = [".".join(parts[: i + 1]) for i in range(len(parts))]
    if values.get("ensure_weight_tying") and parts[-1] in TIED:
        inside += ["transformer.wte", "lm_head"]
    return any(path.endswith(name) for path in inside for name in values.get("modules_to_save") or ())


def trained_tokens(values: Mapping[str, Any], known: str) -> list[int] | None:
    """Return the tokens of which single rows of a module were trained; None if its rows were not trained one by one.

    A list in the config is for the embedding; a dict names modules by the ends of their names.
    """
    asked = values.get("trainable_token_indices")
    if isinstance(asked, dict):
        found = [tokens for name, tokens in asked.items() if known.endswith(name)]
        return found[0] if len(found) == 1 else None
    return asked if canonical(known) == "wte" else None


def refuse_unknown(file: Path, values: Mapping[str, Any]) -> None:
    """Refuse a config with a key or value that the merge does not support. The error names it."""
    if values.get("peft_type") != "LORA":
        raise CheckpointError(f"{file}: peft_type is {values.get('peft_type')!r}; only LORA can be merged")
    for key, value in values.items():
        if value and key not in USED | WITHOUT_TRACE:
            raise CheckpointError(f"{file} sets {key}, which cannot be merged; merge with peft itself and save that")
    for key, sound in SOUND.items():
        if key in values and not sound(values[key]):
            raise CheckpointError(f"{file}: {key} is {values[key]!r}, which cannot be merged")
    if values.get("use_dora") and values.get("lora_bias"):
        raise CheckpointError(f"{file} sets use_dora and lora_bias, which peft does not do together")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # type: ignore[arg-type]


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _are_texts(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(text, str) for text in value))


def _is_pattern_of(sound: Callable[[object], bool]) -> Callable[[object], bool]:
    def holds(value: object) -> bool:
        if not isinstance(value, dict):
            return value is None
        return all(_compiles(key) and sound(number) for key, number in value.items())

    return holds


def _compiles(pattern: str) -> bool:
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _are_tokens(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(tokens, list) and _are_tokens(tokens) for tokens in value.values())
    if not isinstance(value, list):
        return value is None
    return all(type(token) is int and token >= 0 for token in value) and len(value) == len({*value})


def _are_names(value: object) -> bool:
    return _compiles(value) if isinstance(value, str) else _are_texts(value)


def _are_layer_patterns(value: object) -> bool:
    patterns = [value] if isinstance(value, str) else value
    return _are_texts(patterns) and all(_compiles(_layer(pattern)) for pattern in patterns or ())  # type: ignore[attr-defined]


def _are_layers(value: object) -> bool:
    return value is None or type(value) is int or (isinstance(value, list) and all(type(n) is int for n in value))


# Key → the test that its value must pass.
SOUND: dict[str, Callable[[Any], bool]] = {
    "r": _is_rank,
    "lora_alpha": _is_number,
    "rank_pattern": _is_pattern_of(_is_rank),
    "alpha_pattern": _is_pattern_of(_is_number),
    "use_rslora": _is_flag,
    "use_dora": _is_flag,
    "lora_bias": _is_flag,
    "ensure_weight_tying": _is_flag,
    "bias": lambda value: value is None or value in BIASES,
    "modules_to_save": _are_texts,
    "target_modules": _are_names,
    "exclude_modules": _are_names,
    "trainable_token_indices": _are_tokens,
    "layers_to_transform": _are_layers,
    "layers_pattern": _are_layer_patterns,
    "init_lora_weights": lambda value: any(value is known or value == known for known in BEGINNINGS),
}


def targets(values: Mapping[str, Any], known: str) -> bool:
    """Tell whether PEFT gives a module an update. The rule is that of PEFT's ``check_target_module_exists``."""
    targets = values.get("target_modules")
    if _named(values.get("exclude_modules"), known) or saves(values, known):
        return False
    if targets == "all-linear":
        return CONV1D.fullmatch(canonical(known)) is not None
    if not _named(DEFAULT_TARGETS if targets is None else targets, known):
        return False
    layers = values.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return True
    patterns = values.get("layers_pattern") or []
    patterns = [_layer(pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns)] or [ANY_LAYER]
    layer = next((int(match["idx"]) for pattern in patterns if (match := re.match(pattern, known))), None)
    return layer in ([layers] if isinstance(layers, int) else layers)


ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."


def _layer(pattern: str) -> str:
    """Return a pattern that finds the first number after ``pattern`` in a name."""
    return rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."


def _named(names: str | list[str] | None, known: str) -> bool:
    """Tell whether a name is among ``names``. A text is a pattern for a whole name; a list holds the ends of names."""
    if isinstance(names, str):
        return re.fullmatch(names, known) is not None
    return any(known == name or known.endswith(f".{name}") for name in names or ())


def by_pattern(patterns: Mapping[str, Any] | None, known: str, default: Any) -> Any:
    """Return the value of the first pattern that matches, or the default, as PEFT's ``get_pattern_key`` does."""
    fits = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", known))
    return next(fits, default)
