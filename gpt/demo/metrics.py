"""What /metrics tells, in Prometheus' text format."""

import prometheus_client as prometheus

from gpt.demo.engine import Engine

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST


class Metrics:
    """Counts of one server; in a registry of their own, so that two servers in a process do not mix."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter("gpt_requests", "Requests answered.", ("path", "status"), registry=registry)
        self.seconds = prometheus.Histogram(
            "gpt_request_seconds",
            "Time from the request to the end of its answer.",
            ("path",),
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
        )
        self.prompt_tokens = prometheus.Counter("gpt_prompt_tokens", "Tokens of prompts read.", registry=registry)
        self.new_tokens = prometheus.Counter("gpt_new_tokens", "Tokens written.", registry=registry)
        for name, meaning, value in (
            ("gpt_slots", "Texts that can be written at once.", lambda: engine.num_slots),
            ("gpt_slots_busy", "Texts that are being written.", lambda: engine.num_busy),
            ("gpt_waiting", "Texts that wait for a slot.", lambda: engine.num_waiting),
        ):
            prometheus.Gauge(name, meaning, registry=registry).set_function(value)

    def text(self) -> bytes:
        """The page."""
        return prometheus.generate_latest(self._registry)
