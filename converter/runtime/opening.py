"""Opens a model folder: finds its graph, refuses what is not GPT-2's, and says which sessions there may be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from converter.checkpoint.config import parse_config
from converter.errors import ConfigError, ModelFolderError
from converter.files import read_json
from converter.folder import manifest
from converter.folder.staging import settle
from converter.runtime.cache import IN_PLACE_FED, STEP_FED
from converter.runtime.decoder import cache_names
from converter.runtime.eight_bits import is_offered
from converter.runtime.exports.files import is_export, onnx_files
from converter.runtime.exports.open import open_export, read_export
from converter.runtime.gpu.buffers import Pool
from converter.runtime.gpu.graph import GPU_FED
from converter.runtime.gpu.graph import rewritten as for_gpu
from converter.runtime.huge_pages import Mover, regions
from converter.runtime.in_place import rewritten
from converter.runtime.integer import open_integers
from converter.runtime.later import Later
from converter.runtime.ort import (
    CAPTURED,
    CPU_PROVIDER,
    CUDA_PROVIDER,
    ORT_VERSION,
    InferenceSession,
    device_for,
    open_session,
    provider_name,
    untiled,
)
from converter.runtime.session import CacheType, Model
from converter.weights import precisions
from converter.weights.precisions import PRECISIONS
from reference.config import GPT2Config

# The execution providers whose steps are captured, and their options for it.
CAPTURING = {CUDA_PROVIDER: CAPTURED}

MODEL_FILES = ("onnx/model.onnx", "model.onnx")  # where a folder without our manifest may have its graph


def model_file(folder: Path, precision: str | None = None) -> Path:
    """Return the graph of a model folder, in one of its precisions or in the first.

    Raises:
        ModelFolderError: there is none.
        ConfigError: there is no such precision.
    """
    settle(folder)
    values = manifest.read(folder)
    names = [str(values["model"])] if "model" in values else list(MODEL_FILES)
    if precision is not None:
        precisions.parse([precision])
        there = values.get("precisions") or {"fp32": {"model": names[0]}}
        if precision not in there:
            raise ModelFolderError(
                f"{folder} has no {precision}, only {', '.join(there)}; add it with "
                f"gpt2onnx convert SOURCE {folder} --precision {precision}"
            )
        names = [str(there[precision]["model"])]
    for name in names:
        if not os.path.isabs(name) and ".." not in Path(name).parts and (folder / name).is_file():
            return folder / name
    manifest.refuse_source(folder, values)
    raise ModelFolderError(f"{folder} has no {names[0]}; make a model folder with gpt2onnx convert SOURCE OUT")


def load(
    folder: str | os.PathLike[str],
    provider: str = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    prepack: bool = True,
    in_place: bool = True,
    large_pages: bool = False,
    cache: CacheType | None = None,
    steady: bool = False,
    cuda_graphs: bool = False,
) -> Model:
    """Open a model folder in ONNX Runtime.

    Args:
        folder: what ``convert`` wrote, or the folder of another exporter with its ``config.json``.
        provider: ``cpu``, ``cuda`` or another that the installed ONNX Runtime offers.
        threads: for one operator; by default one a core.
        precision: one that the folder holds; by default the first of fp32, fp16, int8, int4.
        prepack: lay the weights out anew for speed. Without it they stay in the mapped file, which saves a second copy
            of them in memory and the time to make it. int8 and int4 are laid out anew in any case, and for many rows
            once more; without ``prepack`` only once.
        in_place: on a CPU, let the cache grow where it lies, which takes another operator than the folder's graph has.
            Without it, or where that cannot be, the graph is run as it is, as other clients run it.
        large_pages: after some steps, move the weights to pages of 2 MiB, where Linux can: see
            ``converter.runtime.huge_pages``. It decodes faster, and changes memory of this process.
        cache: ``int8`` keeps keys and values in 8 bits, a quarter of the memory, and takes another session; ``float32``
            never does. By default int8 and int4 do so for 16 and more texts side by side.
        steady: run int8 and int4 as integer products whatever the number of rows, so that a text gets the same tokens
            alone and beside others. One text takes somewhat longer.
        cuda_graphs: run fp16 on a GPU over buffers of its memory, with all kernels of a step launched at once: see
            ``converter.runtime.gpu``.

    Raises:
        ConfigError: there is no such precision, its cache cannot be int8 here, or it cannot be ``steady`` or run as
            ``cuda_graphs`` here.
        ModelFolderError: the folder is incomplete or its graph cannot be opened.
        ProviderError: the provider is not there, or does not work on this machine.
    """
    folder = Path(folder)
    name = provider_name(provider)
    settle(folder)
    if is_export(folder) and (folder / "config.json").is_file() and onnx_files(folder):
        if cuda_graphs:
            raise _not_as_cuda_graphs(folder, name)
        return _open_foreign(folder, name, threads)
    file = model_file(folder, precision)
    config = config_of(folder)
    if not config.head_spec.predicts:
        raise ModelFolderError(f"{folder} has the head {config.head} and generates nothing: gpt2onnx run {folder} TEXT")
    if cuda_graphs:
        if cache is not None:
            raise _not_as_cuda_graphs(file, name)
        return _open_captured(folder, file, config, name, threads)
    before = regions()
    quantized = any(row.scheme and file.match(row.model) for row in PRECISIONS.values())
    graph = rewritten(file) if in_place and name == CPU_PROVIDER else None
    session, is_in_place = _open(file, name, threads, prepack or quantized, graph)
    _refuse_another_graph(file, session, config, IN_PLACE_FED if is_in_place else STEP_FED)
    integers = quantized and prepack
    second = Later(partial(open_integers, graph, file.parent, threads)) if graph and is_in_place and integers else None
    rounds = is_in_place and is_offered()
    eight = Later(partial(_open_eight, file, threads, prepack or quantized, integers)) if rounds else None
    if cache == "int8" and eight is None:
        raise ConfigError(f"{file} cannot have a cache of int8 with {name} of ONNX Runtime {ORT_VERSION}: omit --cache")
    if steady and quantized and (second is None or second.session is None):
        raise ConfigError(
            f"{file} cannot be steady with {name} on this machine: omit --steady, and --no-prepack if given"
        )
    return Model(
        folder,
        config,
        session,
        device_for(name),
        second=second,
        eight=eight,
        steady=steady and quantized,
        in_place=is_in_place,
        cache=cache,
        mover=Mover(before) if large_pages else None,
    )


def _refuse_another_graph(file: Path, session: InferenceSession, config: GPT2Config, fed: Sequence[str]) -> None:
    """Refuse a graph that takes something else than ``fed`` and the cache that ``config.json`` describes.

    Raises:
        ModelFolderError: it does.
    """
    pasts, _ = cache_names(config.n_layer)
    shape = refuse_another_interface(file, session, {*fed, *pasts})[pasts[0]]
    if [shape[1], shape[3]] != [config.n_head, config.head_dim]:
        raise ModelFolderError(
            f"{file} is not the graph that config.json describes: its cache has {shape[1]} heads of {shape[3]}, "
            f"config.json has {config.n_head} of {config.head_dim}"
        )


def _open_eight(file: Path, threads: int | None, prepack: bool, integers: bool) -> InferenceSession:
    """Open the graph in ``file`` with a cache of 8 bits."""
    graph = rewritten(file, eight_bits=True)
    assert graph is not None  # with a cache of float32 it was
    whole = open_integers(graph, file.parent, threads) if integers else None
    with untiled():
        return whole or open_session(file, CPU_PROVIDER, threads, prepack, graph)


def _open_captured(folder: Path, file: Path, config: GPT2Config, provider: str, threads: int | None) -> Model:
    """Open the graph in ``file`` for steps that are captured."""
    graph = for_gpu(file) if provider in CAPTURING else None
    if graph is None:
        raise _not_as_cuda_graphs(file, provider)
    session = open_session(file, provider, threads, graph=graph, settings=CAPTURING[provider])
    _refuse_another_graph(file, session, config, GPU_FED)
    return Model(folder, config, session, device_for(provider), in_place=True, pool=Pool())


def _not_as_cuda_graphs(path: Path, provider: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot run as CUDA graphs with {provider}: that takes --provider cuda, --precision fp16 of a folder "
        f"of gpt2onnx, and no --cache; omit --cuda-graphs"
    )


def _open_foreign(folder: Path, provider: str, threads: int | None) -> Model:
    """Open the folder of another exporter."""
    config = config_of(folder)
    export = open_export(read_export(folder, config), config, provider, threads)
    return Model(folder, config, export.parts[0].session, export.device, export=export)


def _open(
    file: Path, provider: str, threads: int | None, prepack: bool, graph: bytes | None
) -> tuple[InferenceSession, bool]:
    """Open ``graph``, or if ONNX Runtime refuses it the graph in ``file``; return whether it is the former."""
    with untiled():
        if graph is not None:
            try:
                return open_session(file, provider, threads, prepack, graph), True
            except ModelFolderError:
                pass  # what is wrong with the folder, if anything is, is said of the graph as it is
        return open_session(file, provider, threads, prepack), False


def config_of(folder: Path) -> GPT2Config:
    """Return the architecture that a model folder describes.

    Raises:
        ConfigError: it describes none.
    """
    return parse_config(read_json(folder / "config.json"), folder / "config.json")


def refuse_another_interface(file: Path, session: InferenceSession, expected: set[str]) -> dict[str, list[Any]]:
    """Return the shapes of a graph's inputs; refuse inputs that do not follow from ``config.json``.

    Raises:
        ModelFolderError: it takes something else.
    """
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_overridable_initializers())}
    for name in sorted(expected ^ shapes.keys()):
        found = "it lacks" if name in expected else "it also takes"
        raise ModelFolderError(f"{file} is not the graph that config.json describes: {found} the input {name}")
    return shapes
