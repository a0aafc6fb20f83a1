"""The options that a folder's ``generation_config.json`` asks for, and how they go together with those that are given.

The rules are those of transformers' ``generate``. What is given wins: what of the file does not go with it is left
aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from converter.errors import ConfigError, PromptError
from converter.files import read_json
from converter.runtime import options, sampling
from converter.runtime.options import GenerationOptions

OURS = tuple(field.name for field in fields(GenerationOptions))

# transformers' names of options that are to be had here → ours.
SAME_NAME = (
    "max_new_tokens", "max_length", "min_new_tokens", "min_length", "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "length_penalty",
    "early_stopping",
)  # fmt: skip
ANOTHER_NAME = {"num_beams": "beams", "num_return_sequences": "best", "stop_strings": "stop"}
SPECULATE = "prompt_lookup_num_tokens"  # which changes no text, so that a file need not say it
NAMES = {**{name: name for name in SAME_NAME}, **ANOTHER_NAME}
DO_SAMPLE = "do_sample"  # which is no option here: a temperature above 0 says as much

# What transformers draws with where do_sample is true and nothing else is said.
DRAWING = {"temperature": 1.0, "top_k": 50}

# What the first versions of transformers wrote into every config.json, and none took for an answer's length.
OLD_MAX_LENGTH = 20

DRAWN = ("temperature", "top_k", "top_p", "min_p")  # what says nothing unless tokens are drawn

CHECKS = sampling.CHECKS | options.CHECKS | {DO_SAMPLE: (lambda value: isinstance(value, bool), "True or False")}

# What changes transformers' texts and is not to be had here → the value that changes nothing.
UNSUPPORTED: dict[str, Any] = {
    "begin_suppress_tokens": None,
    "constraints": None,
    "diversity_penalty": 0.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1,
    "max_time": None,
    "num_beam_groups": 1,
    "penalty_alpha": 0.0,
    "renormalize_logits": False,
    "sequence_bias": None,
    "token_healing": False,
    "watermarking_config": None,
}
UNSUPPORTED_DRAWING = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None}

# Names that other programs have for an option.
ELSEWHERE = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "n": "best",
    "n_beams": "beams",
    "beam_size": "beams",
    "stop_sequences": "stop",
    "random_seed": "seed",
    "streamer": "on_text, or model.stream",
    "stopping_criteria": "stop, or end the loop over model.stream",
    "output_scores": "logprobs",
    "output_logits": "logprobs",
    "repeat_penalty": "repetition_penalty",
}


@dataclass(frozen=True)
class GenerationConfig:
    """What a folder says of generation.

    Attributes:
        file: ``generation_config.json``, or ``config.json`` where there is no such file, as of old.
        values: its content.
    """

    file: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> GenerationConfig:
        """Read a folder's.

        Raises:
            ConfigError: a file is damaged.
        """
        file, old = folder / "generation_config.json", folder / "config.json"
        values = read_json(file) if file.is_file() else read_json(old)
        if not file.is_file() and values.get("max_length") == OLD_MAX_LENGTH:
            del values["max_length"]
        return cls(file if file.is_file() else old, {key: value for key, value in values.items() if value is not None})

    @cached_property
    def options(self) -> dict[str, Any]:
        """Return the options in it, under our names, and ``do_sample``."""
        known = NAMES | {DO_SAMPLE: DO_SAMPLE}
        return {known[key]: value for key, value in self.values.items() if key in known}

    @property
    def ends(self) -> bool:
        """Tell whether it says how long a text may be."""
        return "max_new_tokens" in self.options or "max_length" in self.options

    def with_given(self, given: Mapping[str, Any]) -> GenerationOptions:
        """Return all options: those that are given, those of the file that go with them, and defaults for the rest.

        Args:
            given: under our names, and ``do_sample``.

        Raises:
            PromptError: what is given is out of range, or options do not go together.
            ConfigError: what the file says is out of range.
        """
        draws = _draws(self.options, given)
        meant = {key: value for key, value in self.options.items() if draws or key not in DRAWN}
        file = {key: value for key, value in meant.items() if key not in given}
        self._refuse_unsound(file)
        asked = {key: value for key, value in given.items() if key != DO_SAMPLE}
        if given.get(DO_SAMPLE) is False:
            asked["temperature"] = 0.0
        elif draws and given.get(DO_SAMPLE, self.options.get(DO_SAMPLE)) is True:
            file = DRAWING | file
        aside = {DO_SAMPLE, *_out_of_place(file, given, draws)}
        return GenerationOptions(**({key: value for key, value in file.items() if key not in aside} | asked))

    def _refuse_unsound(self, kept: Mapping[str, Any]) -> None:
        """Refuse values that make no sense. Options that nothing asks for may have any."""
        for key, name in NAMES.items():
            if name not in kept or key not in self.values:
                continue
            sound, expected = CHECKS[name]
            if not sound(self.values[key]):
                raise ConfigError(
                    f"{self.file}: {key} is {self.values[key]!r}; expected {expected}: mend it, or leave the file "
                    f"aside with --no-generation-config (generation_config=False)"
                )

    def left_aside(self, asked: GenerationOptions) -> str:
        """Return a sentence on what of the file ``generate`` cannot do; empty if there is nothing."""
        missed = [f"{name} {self.values[name]!r}" for name in self._missed(asked)]
        if not missed:
            return ""
        return f"{self.file} asks for {', '.join(missed)}, which gpt2onnx does not do: left aside"

    def _missed(self, asked: GenerationOptions) -> Iterator[str]:
        draws = asked.temperature > 0
        unsupported = UNSUPPORTED | UNSUPPORTED_DRAWING if draws else UNSUPPORTED
        for name, neutral in unsupported.items():
            if self.values.get(name, neutral) not in (neutral, None, False, [], {}):
                yield name
        if draws and self.values.get(DO_SAMPLE) is True and self.options.get("beams", 1) != 1:
            yield "num_beams"


NO_CONFIG = GenerationConfig(Path(), {})


def _draws(file: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Tell whether tokens are drawn."""
    told = given.get(DO_SAMPLE)
    if told is False:
        return False
    if "temperature" in given:
        return given["temperature"] != 0
    if told is not None:
        return True
    if given.get("beams", 1) != 1 or given.get("speculate"):
        return False  # which draw nothing
    return file.get(DO_SAMPLE) is True


def _out_of_place(file: Mapping[str, Any], given: Mapping[str, Any], draws: bool) -> Iterator[str]:
    """Yield options that mean nothing beside the others, should the file have them."""
    if "max_new_tokens" in given or "max_length" in given:
        yield from ("max_new_tokens", "max_length")
    no_beams = draws or bool(given.get("speculate")) or given.get("logprobs") is not None
    beams = given.get("beams", 1 if no_beams else file.get("beams", 1))
    if beams == 1:
        yield from ("beams", "length_penalty", "early_stopping")
    if not draws and file.get("best", 1) > beams:
        yield "best"


def renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under our names. An option that is None is not given.

    Raises:
        PromptError: there is no such option, it is given under both names, or its value makes no sense.
    """
    asked, also = dict[str, Any](), ANOTHER_NAME | {SPECULATE: "speculate"}
    for key, value in given.items():
        name = also.get(key, key)
        if name not in (*OURS, DO_SAMPLE):
            raise PromptError(f"generate has no option {key}{_instead(key)}")
        if value is None:
            continue
        if name in asked:
            theirs = next(key for key, ours in also.items() if ours == name)
            raise PromptError(f"{theirs} and {name} mean the same: give one of them")
        sound, expected = CHECKS[name]
        if not sound(value):
            raise PromptError(f"{key} is {value!r}; expected {expected}")
        asked[name] = value
    return asked


def _instead(name: str) -> str:
    """Say what to give in the place of an option that there is not."""
    if name in UNSUPPORTED | UNSUPPORTED_DRAWING:
        return ", which is transformers' alone: omit it"
    known = (*OURS, *ANOTHER_NAME, DO_SAMPLE)
    found = ELSEWHERE.get(name) or next(iter(get_close_matches(name, known, n=1)), None)
    return f"; give {found}" if found else f"; it has {', '.join(sorted(OURS))}"
