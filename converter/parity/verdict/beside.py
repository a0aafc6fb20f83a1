"""Compare the config and the tokenizer of a folder with the source's. They decide how a client uses the graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter import tokenizer
from converter.checkpoint.config import parse_config
from converter.checkpoint.source import Checkpoint
from converter.data import HELD_OUT
from converter.errors import CheckError
from converter.files import read_json
from converter.tokenizer.chat import templates
from converter.weights.ledger import Ledger

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A folder that differs in one of these is another model, and nothing can be compared.
DIMENSIONS = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "inner_dim", "num_labels")

# The config of a folder that differs in one of these does not describe its graph.
FLAGS = (
    "activation_function",
    "layer_norm_epsilon",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "tie_word_embeddings",
    "pad_token_id",
    "summary_activation",
)

# Texts with a special or added token: alone, and within other text.
PLACES = ("{}", "a{}b", "a {} b")

# Texts that no tokenizer was trained on: held-out English with code, and other scripts, which separate words, digits,
# marks and spaces in other ways.
SCRIPTS = (
    "Größe, naïve façade, žluťoučký kůň — 3,14 €",
    "Съешь же ещё этих мягких булок; Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία",
    "שלום עולם، مرحبا بالعالم ١٢٣",
    "हिन्दी में लिखा हुआ पाठ · ภาษาไทยไม่มีช่องว่าง",
    "日本語のテキスト、１２３。它是中文文本。한국어 문장입니다.",
    "👍🏽 👩\u200d👩\u200d👧 🇩🇪 \u00a0\u200b\u3000 e\u0301",
    "  two  spaces\t\ttabs\r\nlines\n\n\n",
    "don't we'll I'M 1234567890 x**2 != <|not|> __init__",
)
TEXTS = (*SCRIPTS, *HELD_OUT.read_text(encoding="utf-8").split("\n\n"))

SHOWN = 40  # characters of a text in a message

# These keys turn the numbers of a classification into an answer.
ANSWERS = ("id2label", "problem_type")


def compare_config(folder: Path, checkpoint: Checkpoint, ledger: Ledger) -> list[str]:
    """Compare ``config.json`` of a model folder with the source; returns a sentence for each difference.

    Raises:
        CheckError: it describes a model with another head or other dimensions.
    """
    values = read_json(folder / "config.json")
    config = parse_config(values, folder / "config.json")
    if ledger.config.head not in (config.head, *config.head_spec.graphs):
        raise CheckError(
            f"{folder} is another model than {checkpoint.folder}: its head is {config.head}, the source's "
            f"{ledger.config.head}; --head says which one is meant"
        )
    for name in DIMENSIONS:
        ours, theirs = getattr(config, name), getattr(ledger.config, name)
        if ours != theirs:
            raise CheckError(
                f"{folder} is another model than {checkpoint.folder}: its {name} is {ours}, the source's {theirs}"
            )
    faults = []
    for name in FLAGS:
        ours, known = getattr(config, name), [getattr(ledger.config, name)]
        if name == "tie_word_embeddings":  # a folder converted in place keeps the source's own config
            known.append(checkpoint.config.tie_word_embeddings)
        if ours not in known:
            faults.append(f"config.json says {name} {ours!r}; the source has {known[0]!r}")
    for name in ANSWERS if config.head_spec.labelled else ():
        if values.get(name) != checkpoint.config_values.get(name):
            faults.append(f"config.json says {name} {values.get(name)!r}; the source has another")
    return faults


def compare_tokenizer(folder: Path, checkpoint: Checkpoint) -> list[str]:
    """Check that texts and conversations become the same tokens as with the source's files and in transformers.

    Returns a sentence for each fault.

    Raises:
        CheckError: a library that reads the source's tokenizer is not installed.
    """
    ours = _as_written(folder)
    with tokenizer.files_of(checkpoint.companions, checkpoint.tokenizer) as source:
        theirs = tokenizer.load(source)
        if theirs is None and ours is not None and (why := tokenizer.unavailable(checkpoint.folder)):
            raise CheckError(f"the tokenizer cannot be compared: {why}")
        fault = None
        if ours is not None and theirs is not None:
            # One fault is enough, as others follow from it.
            fault = _differs(ours, theirs) or _differs_from_transformers(ours, source, checkpoint)
        elif ours is not theirs:
            fault = "only one of the source and the model folder has a tokenizer"
        return [*([fault] if fault else []), *_compare_templates(folder, source)]


def _as_written(folder: Path) -> Tokenizer | None:
    """Return the tokenizer that other clients read: ``tokenizer.json`` of a folder, without the files beside it."""
    file = folder / tokenizer.TOKENIZER
    if not file.is_file():
        return tokenizer.load(folder)
    ours = tokenizer.open_file(file)
    ours.no_truncation()
    ours.no_padding()
    return ours


def _differs(ours: Tokenizer, theirs: Tokenizer) -> str | None:
    """Return how a tokenizer differs from the source's, as gpt2onnx reads it; None if it does not."""
    if ours.to_str() == theirs.to_str():
        return None
    lost = sorted(theirs.get_vocab().keys() - ours.get_vocab().keys())
    if lost and not ours.get_vocab().keys() - theirs.get_vocab().keys():
        return f"tokenizer.json lacks {lost[0]}, which is a token of the source"
    if ours.get_vocab() != theirs.get_vocab():
        return "the tokenizer's vocabulary is not the source's"
    same = all(ours.encode(text).ids == theirs.encode(text).ids for text in TEXTS)
    return None if same else "the tokenizer splits text otherwise"


def _differs_from_transformers(ours: Tokenizer, source: Path, checkpoint: Checkpoint) -> str | None:
    """Return how a tokenizer differs from the one that transformers makes of the source's files.

    None if it does not differ, or if transformers makes none.
    """
    theirs = _transformers_own(source, checkpoint)
    if theirs is None:
        return None
    added = dict.fromkeys([*theirs.all_special_tokens, *theirs.get_added_vocab()])
    around = [form.format(token) for token in added for form in PLACES]
    if fault := _first_difference(ours, theirs, around, framed=True):
        return fault
    return _first_difference(ours, theirs, TEXTS, framed=False, misread=tokenizer.misread_as(source))


def _first_difference(
    ours: Tokenizer, theirs: Any, texts: Sequence[str], framed: bool, misread: int | None = None
) -> str | None:
    """Return a sentence about the first text that becomes other tokens; None if there is none.

    Args:
        framed: whether to add the special tokens that stand around a text.
        misread: the token that transformers makes of unknown characters, if the model was trained with another one.
            Texts with it are skipped.
    """
    wanted = theirs(list(texts), add_special_tokens=framed, verbose=False)["input_ids"] if texts else []
    for text, ids in zip(texts, wanted, strict=True):
        found = ours.encode(text, add_special_tokens=framed).ids
        if found != ids and misread not in ids:
            return f"the tokenizer reads {text[:SHOWN]!r} otherwise than transformers does with the source's files"
    return None


def _transformers_own(source: Path, checkpoint: Checkpoint) -> Any:
    """Return the tokenizer that transformers makes of the source's files; None if it makes none."""
    import transformers

    from converter.parity.legs.huggingface import quiet_transformers

    stated = checkpoint.config_values.get("tokenizer_class")
    config = transformers.GPT2Config(tokenizer_class=stated if isinstance(stated, str) else None)
    try:
        with quiet_transformers():
            return transformers.AutoTokenizer.from_pretrained(
                source, config=config, local_files_only=True, trust_remote_code=False
            )
    except Exception:  # each class raises its own errors
        return None


def _compare_templates(folder: Path, source: Path) -> list[str]:
    """Return a sentence for each chat template that differs."""
    ours, theirs = templates(folder), templates(source)
    changed = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return [f"the chat template {name!r} is not the source's" for name in changed]
