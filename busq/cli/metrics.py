"""
What `/metrics` says: figures of a process in Prometheus' text format, made when somebody asks.

    worker       what it counted, and what its health says in numbers
    watchdog     the same, and the bus: queues, states, totals; read from Redis then
    supervisor   what each of its workers says, told apart by a label `process`

Nothing is gathered in between, so a process that nobody scrapes pays for its counters only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from busq.cli.health import JSON, METRICS, Answer
from busq.cli.safe import shown

if TYPE_CHECKING:
    from busq.cli.keeper import ProcessHealth
    from busq.store.counts import Stats
    from busq.store.figures import Figures, WorkerPool
    from busq.watchdog.health import Health as WatchdogHealth
    from busq.worker.health import Health as WorkerHealth

MOST_QUEUES = 200  # with series of their own; what further ones hold is summed up
OTHER = "_other"
REACHABLE = "Whether Redis answers this process."


def answer(*registries: CollectorRegistry, more: Iterable[Metric] = ()) -> Answer:
    """The page: everything in these registries, and more."""
    return HTTPStatus.OK, METRICS, text(*registries, more=more)


def text(*registries: CollectorRegistry, more: Iterable[Metric] = ()) -> str:
    own = CollectorRegistry()
    own.register(_Ready([*more, _build()]))
    return b"".join(generate_latest(each) for each in (*registries, own)).decode()


class _Ready(Collector):
    """Metrics that are there already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _build() -> Metric:
    from busq import __version__

    return _gauge("busq_build_info", "Which busq this is.", "version", {__version__: 1})


def _gauge(name: str, help: str, label: str, values: Mapping[str, float | None]) -> Metric:
    made = GaugeMetricFamily(name, help, labels=(label,))
    for word, value in values.items():
        if value is not None:
            made.add_metric((shown(word),), value)
    return made


def _one(name: str, help: str, value: float | None) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _counter(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    made = CounterMetricFamily(name, help, labels=(label,))
    for word, value in values.items():
        made.add_metric((shown(word),), value)
    return made


# Processes -----------------------------------------------------------------------------------------------


def of_worker(health: WorkerHealth) -> list[Metric]:
    """What a worker's health says in numbers."""
    pools = health.slots
    found = [
        _gauge("busq_slots", "Jobs that a pool can run at once.", "pool", {name: pools[name].limit for name in pools}),
        _gauge("busq_slots_taken", "Jobs that a pool runs now.", "pool", {name: pools[name].running for name in pools}),
        _one("busq_worker_suspects", "Abandoned handlers whose code may still run here.", len(health.suspects)),
        _one("busq_worker_draining", "Whether this worker takes no more jobs.", health.draining),
        _one("busq_worker_ready", "Whether /readyz says yes.", not any(health.ready.values())),
        _one("busq_loop_lag_seconds", "How late the handlers' loop is right now.", health.loop_lag_s),
        *_of_redis(health),
    ]
    beat, listener = health.beat, health.listener
    if beat is not None:
        found += [
            _one("busq_redis_reachable", REACHABLE, beat.reachable),
            _one("busq_beat_age_seconds", "Since Redis last answered a beat.", beat.answered_s_ago),
        ]
    if listener is not None:
        found += [
            _one("busq_listener_hearing", "Whether a notice sent now would be heard.", listener.hearing),
            _one("busq_listener_subscriptions", "Channels that the server has confirmed.", listener.subscriptions),
            CounterMetricFamily(
                "busq_listener_reconnects", "Connections that failed and were replaced.", value=listener.reconnects
            ),
        ]
    return found


def of_watchdog(health: WatchdogHealth) -> list[Metric]:
    """What a watchdog's health says in numbers."""
    found = [
        CounterMetricFamily("busq_watchdog_passes", "Passes over the bus.", value=health.passes),
        _counter("busq_watchdog_done", "What its passes have brought about.", "what", health.done),
        _one("busq_redis_reachable", REACHABLE, health.reachable),
        *_of_redis(health),
    ]
    if health.last_pass_s_ago is not None:
        found.append(_one("busq_watchdog_pass_age_seconds", "Since the last good pass.", health.last_pass_s_ago))
    return found


def _of_redis(health: WorkerHealth | WatchdogHealth) -> list[Metric]:
    """What became of the server, as this process has seen it."""
    certain = health.data_losses
    return [
        CounterMetricFamily("busq_redis_outages", "Times in which Redis did not serve this process.", health.outages),
        _counter(
            "busq_history_changes",
            "Changes of the data's history, each shard by itself, by whether acknowledged writes were lost with it.",
            "lost",
            {"certain": certain, "possible": health.history_changes - certain},
        ),
    ]


def of_bus(found: Figures, pools: Iterable[WorkerPool]) -> list[Metric]:
    """The bus. Every watchdog tells the same, so take the maximum over watchdogs, not the sum."""
    from busq.store import figures

    stats = found.stats
    ready, held, oldest = _by_queue(found)
    scales = [figures.scale(stats, pool) for pool in pools]
    load, desired = {each.pool: each.load for each in scales}, {each.pool: each.desired for each in scales}
    told = [
        _gauge("busq_jobs", "Jobs by state; of ended ones those whose records are kept.", "state", {**stats.now}),
        _counter("busq_bus_events", "What has happened since the bus was made.", "event", stats.total),
        _counter("busq_cancel_requests", "Cancels of single jobs, by what was answered.", "verdict", stats.verdicts),
        _counter("busq_cancel_endings", "Cancelled jobs, by how their execution ended.", "ended", stats.endings),
        _gauge("busq_queue_ready", "Entries that no worker has read.", "queue", {**ready}),
        _gauge("busq_queue_held", "Entries that workers hold.", "queue", {**held}),
        _gauge("busq_queue_oldest_seconds", "Age of the oldest entry that no worker has read.", "queue", {**oldest}),
        _gauge("busq_pool_load", "Jobs that wait for a pool or run in it.", "pool", {**load}),
        _gauge("busq_pool_desired_pods", "Pods that this load keeps busy.", "pool", {**desired}),
        _one("busq_cancels_overdue", "Cancels past their deadline that nobody has finalized.", found.overdue),
        _one("busq_suspects", "Abandoned attempts whose code may still run.", stats.suspects),
        _one("busq_dead_letters", "Dead letters.", stats.dead),
        _one("busq_rules", "Live rules of cancels by filter.", stats.rules),
        _one("busq_rules_settling", "Those of them that are still settling.", stats.settling),
        _members(found),
    ]
    if found.memory_bytes is not None:
        told.append(_one("busq_redis_memory_bytes", "What the server uses.", found.memory_bytes))
    if found.memory_limit_bytes is not None:
        told.append(_one("busq_redis_memory_limit_bytes", "Its maxmemory; 0 for none.", found.memory_limit_bytes))
    return told


def _by_queue(found: Figures) -> tuple[dict[str, int], dict[str, int], dict[str, float]]:
    """Entries ready, entries held and the age of the oldest, by queue; the busiest have series of their own."""
    busiest = sorted(found.stats.queues, key=lambda each: (-each.ready - each.held, each.queue))
    ready: dict[str, int] = {}
    held: dict[str, int] = {}
    oldest: dict[str, float] = {}
    for place, each in enumerate(busiest):
        name = each.queue if place < MOST_QUEUES else OTHER
        ready[name] = ready.get(name, 0) + each.ready
        held[name] = held.get(name, 0) + each.held
        oldest[name] = max(oldest.get(name, 0.0), each.oldest_s or 0.0)
    return ready, held, oldest


def _members(found: Figures) -> Metric:
    counts = dict.fromkeys(itertools.product(("worker", "watchdog"), ("alive", "silent", "draining")), 0)
    for member in found.members:
        card = member.card
        word = "silent" if not member.is_alive(found.now) else "draining" if card and card.draining else "alive"
        if card is not None and (card.role, word) in counts:
            counts[card.role, word] += 1
    made = GaugeMetricFamily("busq_members", "Processes on the roster.", labels=("role", "is"))
    for words, count in counts.items():
        made.add_metric(words, count)
    return made


# Several workers in one ----------------------------------------------------------------------------------


def merged(texts: Mapping[int, str], processes: Iterable[ProcessHealth]) -> str:
    """The pages of several workers as one, each sample with a label that says of which process it is."""
    families: dict[str, Metric] = {}
    for number, page in texts.items():
        for family in text_string_to_metric_families(page):
            if family.name == "busq_build_info":
                continue
            own = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                own.samples.append(sample._replace(labels={**sample.labels, "process": str(number)}))
    return text(more=[*families.values(), *_of_processes(processes)])


def _of_processes(processes: Iterable[ProcessHealth]) -> list[Metric]:
    each = list(processes)
    lives: dict[str, float] = {str(process.number): process.lives for process in each}
    running = {str(process.number): process.state == "running" for process in each}
    return [
        _counter("busq_process_lives", "How often this worker process was started.", "process", lives),
        _gauge("busq_process_running", "Whether it runs, and has started.", "process", {**running}),
    ]


# Scale ---------------------------------------------------------------------------------------------------


def scale_answer(stats: Stats, pool: WorkerPool) -> Answer:
    """What `/scale/<pool>` says."""
    from busq.store import figures

    return HTTPStatus.OK, JSON, msgspec.json.encode(figures.scale(stats, pool)).decode() + "\n"


def worker_pool(given: str) -> WorkerPool:
    """A pool as `--pool` takes it: NAME=CONCURRENCY:QUEUE[,QUEUE...]. Raise `ConfigError`."""
    from busq.errors import ConfigError
    from busq.store.figures import WorkerPool

    match = re.fullmatch(r"([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)=([1-9][0-9]{0,6}):([^\s,]+(?:,[^\s,]+)*)", given)
    if match is None:
        raise ConfigError(
            f"--pool: {given!r} will not do; it takes NAME=CONCURRENCY:QUEUE[,QUEUE...], as in media=64:video,audio"
        )
    return WorkerPool(name=match[1], concurrency=int(match[2]), queues=tuple(match[3].split(",")))
