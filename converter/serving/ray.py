"""Serves a model folder by replicas of Ray Serve: in each, the application that ``gpt2onnx serve`` runs alone."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml

from converter.errors import ClusterError, ServeError
from converter.runtime.opening import model_file
from converter.serving import cluster, server
from converter.serving.answers import Receive, Send
from converter.serving.app import App
from converter.serving.settings import KEY_VARIABLE, Settings

import ray  # isort: skip - after cluster, which tells it not to report
from pydantic import ValidationError  # isort: skip
from ray import serve  # isort: skip
from ray.serve.config import AutoscalingConfig  # isort: skip
from ray.serve.exceptions import RayServeException  # isort: skip
from ray.serve.schema import DeploymentSchema, LoggingConfig  # isort: skip

NAME = "gpt2onnx"  # of the deployment, in files and in Ray's dashboard
WITHOUT_KEY = "without_key"  # what a configuration file says to serve whoever asks

# Each replica has figures of its own, and a proxy asks any of them: what is read there would jump to and fro.
HIDDEN = {"/metrics": "each replica counts for itself; scrape the metrics of Ray, which count all of them"}


class Replica:
    """One replica: the model, its engine, and the application.

    Args:
        settings: what is served.
        key: the API key that requests need; by default as the settings say.
        needs_key: refuse to serve without one.
    """

    def __init__(self, settings: Settings, key: str | None = None, needs_key: bool = False) -> None:
        server.log_to_standard_error(settings.log)
        key = key or settings.key()
        if needs_key and key is None:
            raise ServeError(
                f"others can reach a cluster, and there is no API key: set {KEY_VARIABLE} on its machines, or write "
                f"{WITHOUT_KEY}: true in args"
            )
        processors = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        self._served = settings.open(threads=max(1, int(processors)))
        self._app = App(self._served, key, settings.allow_origin, HIDDEN)
        if self._served.engine is not None:
            self._served.engine.start()

    def __serve_build_asgi_app__(self) -> Any:
        """Return the application, as Ray asks for it."""

        async def application(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await self._app(scope, receive, send)
                return
            await receive()  # that the application begins, and later that it ends
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

        return application

    def check_health(self) -> None:
        """Tell Ray that the replica is to be replaced, if it is.

        Raises:
            ServeError: its engine has ended.
        """
        if self._served.engine is not None and not self._served.engine.is_alive:
            raise ServeError("the engine has ended")

    def __del__(self) -> None:
        """End the engine."""
        served = getattr(self, "_served", None)
        if served is not None and served.engine is not None:
            served.engine.close()


def application(arguments: Mapping[str, Any]) -> Any:
    """Return the application that a configuration file of Ray Serve names as ``converter.serving.ray:application``.

    Args:
        arguments: its ``args``: options of ``gpt2onnx serve`` by their names, such as ``out`` and ``rows``. Without an
            API key, ``without_key`` must be true.

    Raises:
        ServeError: one is unknown or out of range.
    """
    named = {name.replace("-", "_"): value for name, value in arguments.items()}
    needs_key = named.pop(WITHOUT_KEY, False) is not True
    known = Settings.__dataclass_fields__
    if unknown := [name for name in named if name not in known]:
        raise ServeError(f"serve has no option {unknown[0]}; it has {', '.join(known)}")
    try:
        return deployed(msgspec.convert(named, Settings), {}, needs_key=needs_key)
    except msgspec.ValidationError as error:
        raise ServeError(f"the args of {NAME} cannot be read: {error}") from error


def deployed(settings: Settings, options: Mapping[str, Any], key: str | None = None, needs_key: bool = False) -> Any:
    """Return an application whose replicas serve a folder.

    Args:
        options: of Ray Serve's for a deployment.
        key, needs_key: see ``Replica``.
    """
    defaults = {
        "name": NAME,
        # What a replica cannot run at once waits at the proxy, for whichever replica is free first.
        "max_ongoing_requests": 2 * settings.rows,
        "max_queued_requests": settings.queue,
        "backpressure_config": {"status_code": 429, "retry_after_s": 1},
        "graceful_shutdown_timeout_s": settings.drain,
        "ray_actor_options": {"num_cpus": settings.threads or 1},
    }
    served: Any = serve.deployment(serve.ingress()(Replica))
    return served.options(**defaults | dict(options)).bind(settings, key, needs_key)


def options_in(file: Path, rows: int) -> dict[str, Any]:
    """Return the options of a deployment that a file of YAML holds.

    Args:
        rows: texts of a replica; with ``autoscaling_config`` so many requests are what one should have, by default.

    Raises:
        ServeError: it cannot be read, or Ray Serve has no such options.
    """
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ServeError(f"{file} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ServeError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ServeError(f"{file} has no options of Ray Serve; expected lines such as num_replicas: 2")
    known = DeploymentSchema.model_fields.keys() - {"name"}
    if unknown := [str(name) for name in found if name not in known]:
        raise ServeError(f"{file}: Ray Serve has no option {unknown[0]}; it has {', '.join(sorted(known))}")
    try:
        if isinstance(scaling := found.get("autoscaling_config"), dict):
            aimed = {"target_ongoing_requests": rows} | scaling
            found["autoscaling_config"] = AutoscalingConfig.model_validate(aimed).model_dump()
        return DeploymentSchema(name=NAME, **found).model_dump(exclude_unset=True, exclude={"name"})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ServeError(f"{file}: {place + ': ' if place else ''}{first['msg']}") from error


@contextmanager
def running(settings: Settings, file: Path, host: str, port: int, key: str | None) -> Iterator[str]:
    """Serve by replicas, and yield the address once requests are taken.

    Args:
        file: see ``options_in``.
        host, port: of the proxy.

    Raises:
        ModelFolderError, ConfigError: there is no such model.
        ServeError: the file is refused, the address cannot be had, or the cluster serves the name already.
        ClusterError: there is no cluster, or no replica starts.
    """
    options = options_in(file, settings.rows)
    if cluster.is_here():
        model_file(Path(settings.out), settings.precision)  # to say at once what a replica would say after a while
    with server.listen(host, port) as listening:
        url, port = server.url_of(listening), listening.getsockname()[1]
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with cluster.joined():
        serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
        others, name = serve.status().applications, settings.name or Path(settings.out).name
        if name in others:
            raise ServeError(f"this cluster serves {name} already: give another --name, or end that one")
        try:
            serve.run(deployed(settings, options, key), name=name, route_prefix="/", logging_config=quiet)
            yield url
        except (RuntimeError, RayServeException) as error:
            raise ClusterError(f"no replica could start: {cluster.sentence_of(error)}") from error
        finally:
            with cluster.unheard():
                if others:
                    serve.delete(name)
                else:
                    serve.shutdown()


@contextmanager
def told_to_end() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or SIGINT sets."""
    ended = threading.Event()
    before = {each: signal.signal(each, lambda *_: ended.set()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
