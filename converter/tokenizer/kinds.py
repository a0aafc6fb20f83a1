"""Find the kind of a folder's tokenizer: by a table of classes, or by a table of files if no class is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.errors import GPT2Error, TokenizerError
from converter.tokenizer import byte_level, recipes, sentencepiece_model, wordpiece
from converter.tokenizer.settings import class_name

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenizerKind:
    """A way to make a tokenizer from the files of a folder.

    Attributes:
        files: the sets of files that it can be made of.
        build: makes it of a folder that has one of these.
        class_name: what transformers calls it.
        library: what has to be installed, and the name of the extra that does.
        remark: a sentence on what the tokenizer does otherwise than the files ask, or None.
        tokens: its special tokens where a folder names no other ones.
        unknown_id: what transformers 5 makes of unknown characters whatever the files say; None if it does as they say.
    """

    files: tuple[tuple[str, ...], ...]
    build: Callable[[Path], Tokenizer]
    class_name: str = "PreTrainedTokenizerFast"
    library: str | None = None
    remark: Callable[[Path], str | None] = lambda folder: None
    tokens: Mapping[str, Any] = field(default_factory=dict)
    unknown_id: int | None = None

    def among(self, folder: Path) -> tuple[Path, ...]:
        """Return its files in a folder; none if they are not all there."""
        sets = (tuple(folder / name for name in names) for names in self.files)
        return next((files for files in sets if all(file.is_file() for file in files)), ())


@dataclass(frozen=True)
class Found:
    """A tokenizer that can be made."""

    kind: TokenizerKind
    folder: Path

    def build(self) -> Tokenizer:
        """Make the tokenizer.

        Raises:
            TokenizerError: its files are damaged.
        """
        try:
            return self.kind.build(self.folder)
        except GPT2Error:
            raise
        except Exception as error:  # the libraries raise nothing narrower
            files = " and ".join(map(str, self.kind.among(self.folder)))
            raise TokenizerError(f"{files} cannot be read ({error})") from error


LIBRARY = "sentencepiece"
MODELS = tuple((name,) for name in sentencepiece_model.FILES)

BYTE_LEVEL = TokenizerKind((byte_level.FILES,), byte_level.build, byte_level.CLASS, tokens=byte_level.TOKENS)
WORDPIECE = TokenizerKind((wordpiece.FILES,), wordpiece.build, "BertTokenizer", tokens=wordpiece.TOKENS)
PLAIN = TokenizerKind(MODELS, partial(recipes.build, recipes.PLAIN), library=LIBRARY)

CLASSES = {
    kind.class_name: kind
    for kind in (
        BYTE_LEVEL,
        WORDPIECE,
        *(
            TokenizerKind(
                MODELS,
                partial(recipes.build, recipe),
                name,
                LIBRARY,
                partial(recipes.remark, name, recipe),
                recipe.tokens,
                recipe.unknown_id,
            )
            for name, recipe in recipes.RECIPES.items()
        ),
    )
}

# Where the class says nothing, the files do. GPT2Tokenizer is among those names, as it is what a GPT-2 has by default.
BY_FILES = (BYTE_LEVEL, WORDPIECE, PLAIN)
SAYS_NOTHING = ("", "PreTrainedTokenizer", "TokenizersBackend", byte_level.CLASS)

# Why a class cannot be put into a tokenizer.json; the others are only unknown.
UNSUITABLE = {"BertJapaneseTokenizer": "which splits words with MeCab and a dictionary of its own"}


def misread_as(folder: Path) -> int | None:
    """Return the token that transformers 5 makes of unknown characters, whatever the folder's files say of them."""
    kind = CLASSES.get(class_name(folder))
    return kind.unknown_id if kind else None


def find(folder: Path) -> Found | str | None:
    """Return the tokenizer that the vocabulary files of a folder give.

    Returns:
        A sentence's end, saying why there is none here, if there are files; None if there are none.
    """
    name = class_name(folder)
    kind = CLASSES.get(name)
    if kind is None or not kind.among(folder):
        # Vocabulary and merges are GPT-2's under many names.
        candidates = BY_FILES if name in SAYS_NOTHING else (BYTE_LEVEL,)
        kind = next((candidate for candidate in candidates if candidate.among(folder)), None)
    if kind is not None and kind.library and find_spec(kind.library) is None:
        file = kind.among(folder)[0]
        return f"{file} needs {kind.library}: pip install 'gpt2onnx[{kind.library}]'"
    if kind is not None:
        return Found(kind, folder)
    files = next(filter(None, (candidate.among(folder) for candidate in BY_FILES)), ())
    why = UNSUITABLE.get(name, "which is not known here")
    return f"{files[0]} is of a {name}, {why}" if files else None
