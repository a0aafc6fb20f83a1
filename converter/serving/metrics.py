"""What a server counts and times, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from converter.serving.served import Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. Tokens take 1 ms to 1 s; whole requests up to the time limit.
FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

# What the engine knows: name, what it is, the attribute of its stats, and whether it only grows.
OF_ENGINE = (
    ("running", "texts that run", "running", False),
    ("rows", "texts that may run", "rows", False),
    ("waiting", "texts that wait", "waiting", False),
    ("queue", "texts that may wait", "queue", False),
    ("cache_bytes", "of the cache, if every row were full", "cache_bytes", False),
    ("generated_tokens", "tokens that were chosen", "generated_tokens", True),
    ("prompt_tokens", "tokens of prompts that were computed", "prompt_tokens", True),
    ("shared_prompt_tokens", "tokens of prompts that were there already", "shared_tokens", True),
)


class Watch:
    """Times the tokens of one request."""

    def __init__(self, meter: Meter, begun: float) -> None:
        self._meter, self._begun = meter, begun
        self._last = dict[int, float]()

    def tick(self, text: int) -> None:
        """Note a token of a text."""
        now, before = time.perf_counter(), self._last.get(text)
        if before is None:
            self._meter.first.observe(now - self._begun)
        else:
            self._meter.between.observe(now - before)
        self._last[text] = now


class Meter:
    """The figures of one server.

    Attributes:
        first: seconds from a request for a text to its first token.
        between: seconds from a token to the next.
        whole: seconds of an answer, by route and status.
        requests: answers, by route and status.
    """

    def __init__(self, served: Served) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.first = self._histogram("time_to_first_token_seconds", "from a request to a text's first token", FIRST)
        self.between = self._histogram("time_between_tokens_seconds", "from a token of a text to the next", BETWEEN)
        self.whole = self._histogram("request_seconds", "from a request to the end of its answer", WHOLE, ["route"])
        self.requests = Counter("gpt2onnx_requests", "answers", ["route", "status"], registry=self.registry)
        self.registry.register(Sizes(served))

    def _histogram(self, name: str, about: str, buckets: Iterable[float], labels: Iterable[str] = ()) -> Histogram:
        return Histogram(f"gpt2onnx_{name}", about, list(labels), buckets=list(buckets), registry=self.registry)

    def watch(self, begun: float) -> Watch:
        """Return what times the tokens of a request that came at ``begun``, a ``time.perf_counter``."""
        return Watch(self, begun)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Note an answer."""
        self.requests.labels(route, str(status)).inc()
        self.whole.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return generate_latest(self.registry)


class Sizes(Collector):
    """What the engine knows, asked when somebody looks."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def collect(self) -> Iterator[Metric]:
        """Yield the figures."""
        yield GaugeMetricFamily("gpt2onnx_certificate_verified", "1 if the folder is proven", int(self.served.proven))
        yield GaugeMetricFamily(
            "gpt2onnx_aside_jobs", "requests that run or wait beside the engine", self.served.aside.jobs
        )
        if self.served.engine is None:
            return
        stats = self.served.engine.stats
        for name, about, attribute, grows in OF_ENGINE:
            kind = CounterMetricFamily if grows else GaugeMetricFamily
            yield kind(f"gpt2onnx_{name}", about, value=getattr(stats, attribute))
