"""The figures of real processes, read as Prometheus reads them."""

from __future__ import annotations

import json
import signal
from http import HTTPStatus
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from busq.cli import metrics
from busq.errors import ConfigError
from busq.store.figures import WorkerPool
from tests.interface.commands import LIMIT_S, Service, busq, service
from tests.interface.test_supervisor import eventually, get, port_of, ready
from tests.servers import RedisServer

PAGE = ("--health-port", "0", "--health-host", "127.0.0.1")

Sample = tuple[str, frozenset[tuple[str, str]]]


def figures(running: Service) -> dict[Sample, float]:
    """Every sample of a page, by name and labels."""
    status, page = get(port_of(running), "/metrics")
    assert status == HTTPStatus.OK, page
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def of(found: dict[Sample, float], name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels."""
    return sum(value for (each, own), value in found.items() if each == name and labels.items() <= set(own))


def test_a_worker_counts_starts_endings_and_how_soon_a_cancel_was_heard(redis_url: str) -> None:
    with service("worker", "shop:bus", *PAGE, url=redis_url) as running:
        ready(port_of(running))
        assert busq("enqueue", "add", "[1, 2]", "--wait", "60", url=redis_url).returncode == 0
        busq("enqueue", "wait", "--jid", "a", url=redis_url)
        running.until("waiting")
        assert busq("cancel", "a", "--wait", "60", url=redis_url).returncode == 0
        found = eventually(lambda: _with(running, "busq_cancel_final_seconds_count", by="worker"))
    of_add = {"queue": "default", "kind": "add"}
    assert of(found, "busq_jobs_started_total", **of_add) == 1
    assert of(found, "busq_jobs_settled_total", outcome="succeeded", **of_add) == 1
    assert of(found, "busq_job_run_seconds_count", **of_add) == 1
    assert of(found, "busq_jobs_settled_total", outcome="cancelled", kind="wait") == 1
    assert of(found, "busq_cancel_signal_seconds_count") == 1
    assert of(found, "busq_slots", pool="coroutine") == 100
    assert (
        of(found, "busq_worker_ready") == of(found, "busq_listener_hearing") == of(found, "busq_redis_reachable") == 1
    )
    labels = {name for _, own in found for name, _ in own}
    assert labels <= {"queue", "kind", "outcome", "path", "by", "pool", "le", "lost", "version"}, "no series of jobs"


def _with(running: Service, name: str, **labels: str) -> dict[Sample, float] | None:
    found = figures(running)
    return found if of(found, name, **labels) else None


def test_a_supervisor_tells_for_each_of_its_workers(redis_url: str) -> None:
    with service("worker", "shop:bus", "--processes", "2", *PAGE, url=redis_url) as running:
        ready(port_of(running))
        assert busq("enqueue", "add", "[1, 2]", "--wait", "60", url=redis_url).returncode == 0
        found = eventually(lambda: _of_both(running))
        assert of(found, "busq_jobs_settled_total", outcome="succeeded") == 1
        assert of(found, "busq_jobs_started_total", kind="add") == 1
        assert [of(found, "busq_slots", pool="coroutine", process=number) for number in "12"] == [100, 100]
        assert of(found, "busq_process_running") == 2
        assert of(found, "busq_process_lives_total") == 2


def _of_both(running: Service) -> dict[Sample, float] | None:
    """A page on which both workers are and one has settled its job; one that does not answer in time is left out."""
    found = figures(running)
    slots = [of(found, "busq_slots", pool="coroutine", process=number) for number in "12"]
    return found if all(slots) and of(found, "busq_jobs_settled_total", outcome="succeeded") else None


def test_a_watchdog_tells_of_the_bus_and_what_it_finalized(redis_url: str) -> None:
    pools = ("--pool", "front=16:default", "--pool", "media=2:video,audio")
    with service("watchdog", *PAGE, *pools, url=redis_url) as dog:
        ready(port_of(dog))
        for queue in ("video", "video", "audio"):
            busq("enqueue", "anything", "--queue", queue, url=redis_url)
        found = figures(dog)
        assert of(found, "busq_jobs", state="queued") == 3
        assert of(found, "busq_bus_events_total", event="enqueued") == 3
        assert of(found, "busq_queue_ready", queue="video") == 2
        assert of(found, "busq_members", role="watchdog", **{"is": "alive"}) == 1
        assert of(found, "busq_members", role="worker") == 0
        assert of(found, "busq_pool_load", pool="media") == 3
        assert of(found, "busq_pool_desired_pods", pool="media") == 2
        assert of(found, "busq_redis_memory_bytes") > 0
        assert json.loads(get(port_of(dog), "/scale/media")[1]) == {
            "pool": "media", "ready": 3, "held": 0, "load": 3, "concurrency": 2, "desired": 2,
        }  # fmt: skip
        status, said = get(port_of(dog), "/scale/nobody")
        assert (status, "/scale/front" in said) == (HTTPStatus.NOT_FOUND, True)
        with service("worker", "shop:bus", url=redis_url) as worker:
            busq("enqueue", "ignore", "--jid", "deaf", url=redis_url)
            worker.until("ignoring")
            assert of(figures(dog), "busq_pool_load", pool="front") == 1, "what runs is not scaled away"
            worker.process.send_signal(signal.SIGSTOP)
            busq("cancel", "deaf", url=redis_url)
            dog.until("job.finalized")
            worker.process.send_signal(signal.SIGCONT)
        found = figures(dog)
        assert of(found, "busq_cancel_final_seconds_count", by="watchdog") == 1
        assert of(found, "busq_watchdog_done_total", what="job.finalized") == 1
        assert of(found, "busq_suspects") == 1
        assert of(found, "busq_bus_events_total", event="signalled") == 1
        assert of(found, "busq_cancel_requests_total", verdict="signalled") == 1
        assert of(found, "busq_cancel_endings_total", ended="abandoned") == 1


def test_outages_and_changes_of_history_are_counted_by_workers_and_watchdogs(own_server: RedisServer) -> None:
    """A server that goes and comes back empty: one outage, and one change with which all was lost."""
    of_history = [frozenset({("lost", word)}) for word in ("certain", "possible")]
    with (
        service("worker", "shop:bus", *PAGE, url=own_server.url) as worker,
        service("watchdog", *PAGE, url=own_server.url) as dog,
    ):
        for each in (worker, dog):
            ready(port_of(each))
            found = figures(each)
            assert [found["busq_history_changes_total", own] for own in of_history] == [0, 0], "there from the start"
            assert found["busq_redis_outages_total", frozenset()] == 0
        own_server.kill()
        for each in (worker, dog):
            eventually(lambda each=each: _with(each, "busq_redis_outages_total"))
        own_server.start()
        for each in (worker, dog):
            found = eventually(lambda each=each: _with(each, "busq_history_changes_total"))
            assert [found["busq_history_changes_total", own] for own in of_history] == [1, 0]
            assert found["busq_redis_outages_total", frozenset()] == 1


def _unreachable(running: Service) -> dict[Sample, float] | None:
    found = figures(running)
    return found if found["busq_redis_reachable", frozenset()] == 0 else None


def test_without_redis_a_watchdog_tells_just_that(own_server: RedisServer) -> None:
    with service("watchdog", *PAGE, "--pool", "front=16:default", url=own_server.url) as dog:
        ready(port_of(dog))
        own_server.kill()
        found = eventually(lambda: _unreachable(dog))
        assert of(found, "busq_jobs") == 0
        assert get(port_of(dog), "/readyz")[0] != HTTPStatus.OK
        with pytest.raises(HTTPError, match="503"):
            urlopen(f"http://127.0.0.1:{port_of(dog)}/scale/front", timeout=LIMIT_S)


def test_a_pool_is_given_by_name_concurrency_and_queues() -> None:
    assert metrics.worker_pool("media=64:video,audio") == WorkerPool(
        name="media", concurrency=64, queues=("video", "audio")
    )
    for wrong in ("media", "media=0:video", "media=64:", "Media=1:a", "media=64:a,,b", "=1:a", "a/b=1:a"):
        with pytest.raises(ConfigError, match="takes NAME=CONCURRENCY:QUEUE"):
            metrics.worker_pool(wrong)
