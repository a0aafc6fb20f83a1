"""Joins a cluster of Ray, or starts one on this machine alone."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from converter.errors import ClusterError
from converter.files import reason

ADDRESS = "RAY_ADDRESS"  # the variable by which Ray, too, is told of a cluster
LOOPBACK = "127.0.0.1"
REACH_SECONDS = 10.0  # for the first answer of a cluster
ATTEMPTS = 3  # to start a cluster: two that start at once may take each other's ports
OURS = re.compile(r"errors\.\w+: (.+)")  # a sentence of ours, in the traceback of another process

# Set before Ray is imported: tell nobody how it is used, write no warnings of its inner workings, and give its parts a
# minute instead of 20 seconds to find each other, as a busy machine needs.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "60")

import ray  # noqa: E402
from ray.exceptions import RayError  # noqa: E402


def is_here() -> bool:
    """Tell whether the cluster is one that is started on this machine."""
    return ADDRESS not in os.environ


@contextmanager
def joined(processors: int | None = None) -> Iterator[None]:
    """Join the cluster that ``RAY_ADDRESS`` names, or else start one on this machine; leave it again.

    Args:
        processors: of a cluster that is started; by default as many as the machine has.

    Raises:
        ClusterError: there is none at that address.
    """
    address = os.environ.get(ADDRESS)
    refuse_unreachable(address or "")
    quietly: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    alone: dict[str, Any] = {"num_cpus": processors, "include_dashboard": False, "_node_ip_address": LOOPBACK}
    for attempt in range(ATTEMPTS):
        try:
            with unheard():
                ray.init(address or "local", **({} if address else alone), **quietly)
            break
        except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
            ray.shutdown()
            if address or attempt == ATTEMPTS - 1:
                where = f"the cluster of Ray at {address}" if address else "a cluster of Ray"
                raise ClusterError(f"{where} cannot be joined: {' '.join(str(error).split())}") from error
    try:
        yield
    finally:
        with unheard():
            ray.shutdown()


def refuse_unreachable(address: str) -> None:
    """Refuse an address at which nobody listens; Ray would try it for more than a minute.

    Raises:
        ClusterError: nobody does.
    """
    found = re.fullmatch(r"(?:ray://)?(?P<host>[^/]+):(?P<port>\d+)", address)
    if found is None:  # "auto" and the like, of which Ray knows more
        return
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        told = reason(error) if isinstance(error, OSError) else error
        raise ClusterError(f"the cluster of Ray at {address} cannot be joined: {told}") from error


@contextmanager
def unheard() -> Iterator[None]:
    """Discard what Ray prints when its parts start and end, from Python and from its core."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def share(workers: int | None, threads: int | None) -> tuple[int, int]:
    """Return how many workers there are to be, and the threads of each.

    Args:
        workers: None for one on each machine.
        threads: None for all processors, in equal parts.

    Raises:
        ClusterError: the cluster has too few processors. Ray would wait for more of them without end.
    """
    there = int(ray.cluster_resources().get("CPU", 0))
    workers = workers or sum(node["Alive"] for node in ray.nodes())
    threads = threads or max(1, there // workers)
    if workers * threads > there:
        raise ClusterError(
            f"workers: {workers} of {threads} threads each need {workers * threads} processors, and the cluster has "
            f"{there}; give fewer --workers or --threads, or add machines"
        )
    return workers, threads


def sentence_of(told: object) -> str:
    """Return the sentence in what Ray tells of a failure: ours if there is one, else its last line."""
    text = str(told).strip()
    ours = OURS.findall(text)
    return ours[-1] if ours else text.splitlines()[-1].strip()
