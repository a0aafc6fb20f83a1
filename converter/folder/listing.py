"""List what a folder holds. No link is followed, so that nothing outside the folder is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.errors import ModelFolderError
from converter.files import reason
from converter.folder import staging

# What git, downloads from the Hub and file managers put beside a model. No program reads a model from there.
BESIDE = (".git", ".gitattributes", ".gitignore", ".cache", ".DS_Store")


@dataclass(frozen=True)
class Listing:
    """Files and links below a folder, by their names in it, with slashes.

    Attributes:
        home: the folder.
        files: regular files.
        links: symbolic links, and what each points to.
        others: pipes, sockets, devices.
    """

    home: Path
    files: frozenset[str]
    links: Mapping[str, str]
    others: frozenset[str] = frozenset()

    @property
    def names(self) -> set[str]:
        """Return all names."""
        return {*self.files, *self.links, *self.others}

    def leads_out(self, link: str) -> bool:
        """Tell whether a link points to something outside the folder, or inside to what does not count: no certificate
        hashes that.
        """
        target, home = Path(os.path.realpath(self.home / link)), os.path.realpath(self.home)
        return not target.is_relative_to(home) or not counts(target.relative_to(home).as_posix())


def counts(name: str) -> bool:
    """Tell whether a name is part of the model: neither put there by other tools, nor left by a process of ours."""
    return staging.counts(name) and not any(part in BESIDE for part in name.split("/"))


def listing(folder: Path) -> Listing:
    """List a folder, with all folders below it.

    Raises:
        ModelFolderError: one of them cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ModelFolderError(f"{folder} cannot be read: {reason(error)}") from error

    files, links, others = set(), {}, set()
    for parent, folders, names in os.walk(folder, onerror=refuse):
        for path in (Path(parent, name) for name in (*folders, *names)):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                links[name] = os.readlink(path)
            elif path.is_file():
                files.add(name)
            elif not path.is_dir():
                others.add(name)
    return Listing(folder, frozenset(files), links, frozenset(others))


def listing_of(file: Path, names: Iterable[str]) -> Listing:
    """List a file and those of ``names`` that are files beside or below it; what else is there is of no concern."""
    home = file.parent
    files = {name for name in names if _is_inside(home, name)}
    return Listing(home, frozenset({*files, file.name}), {})


def _is_inside(home: Path, name: str) -> bool:
    """Tell whether a name is that of a regular file in a folder, reached without a link."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        return False
    passed = [home.joinpath(*path.parts[:end]) for end in range(1, len(path.parts) + 1)]
    return not any(each.is_symlink() for each in passed) and (home / path).is_file()
