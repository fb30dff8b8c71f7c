"""`busq worker` and `busq watchdog` as processes: how they start, what they log, how they end."""

from __future__ import annotations

import json
import signal
import threading

import pytest
from redis import Redis

from tests.interface.commands import busq, document, service, terminal
from tests.servers import RedisServer


def test_a_drained_worker_exits_0_and_hands_its_job_back(redis_url: str) -> None:
    with service("worker", "shop:bus", "--shutdown-timeout", "0.1", url=redis_url, BUSQ_CLEANUP_S="1") as worker:
        worker.until("worker.started")
        busq("enqueue", "wait", "--jid", "a", url=redis_url)
        worker.until("waiting")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == 0
    job = document(busq("get", "a", "-o", "json", url=redis_url))
    assert (job["state"], job["failures"], job["losses"]) == ("queued", 0, 0)


def test_a_worker_leaves_although_abandoned_code_still_runs(redis_url: str) -> None:
    with service("worker", "shop:bus", "--shutdown-timeout", "60", url=redis_url, BUSQ_CLEANUP_S="0.2") as worker:
        worker.until("worker.started")
        busq("enqueue", "ignore", "--jid", "a", url=redis_url)
        worker.until("ignoring")
        worker.process.send_signal(signal.SIGTERM)
        worker.until("worker.draining")
        worker.process.send_signal(signal.SIGINT)  # hurry
        assert worker.ended() == 0
        assert worker.lines[-1]["event"] == "worker.stopped"
    assert document(busq("get", "a", "-o", "json", url=redis_url))["state"] == "queued"


def test_every_line_of_a_job_carries_its_jid_kind_and_attempt_and_no_secret(redis_url: str) -> None:
    with service("worker", "shop:bus", url=redis_url) as worker:
        busq("enqueue", "wait", "--jid", "a", url=redis_url)
        said = [worker.until("waiting"), worker.until("by way of logging")]
        worker.process.kill()
        worker.ended()
    for line in said:
        assert (line["jid"], line["kind"], line["attempt"]) == ("a", "wait", 1)
    assert "hunter22" not in worker.text
    assert all(json.loads(line) for line in worker.text.splitlines())


def test_a_handler_of_the_process_pool_runs_in_a_child_whose_lines_look_like_the_workers(redis_url: str) -> None:
    with service("worker", "shop:bus", url=redis_url) as worker:
        worker.until("worker.started")
        answer = busq("enqueue", "child", "--jid", "a", "--wait", "-o", "json", url=redis_url)
        assert answer.returncode == 0, answer.stderr
        line = worker.until("by way of a child")
        assert (line["jid"], line["kind"], line["attempt"]) == ("a", "child", 1)
        assert document(busq("get", "a", "-o", "json", url=redis_url))["result"] != worker.process.pid
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == 0


def test_the_level_is_taken_from_the_option_then_the_environment(redis_url: str) -> None:
    with service("worker", "shop:bus", "--log-level", "debug", url=redis_url, BUSQ_LOG_LEVEL="error") as worker:
        busq("enqueue", "add", "[1]", "--jid", "a", url=redis_url)
        assert worker.until("job.succeeded")["jid"] == "a"
    answer = busq("watchdog", url=redis_url, BUSQ_LOG_LEVEL="loud")
    assert answer.returncode == 2
    assert "debug, info, warning, error" in answer.stderr


@pytest.mark.parametrize("queue", ["media,audio", "", "a b", "\x1b[31ma"])
def test_a_queue_that_no_job_can_be_in_is_a_usage_error(queue: str, redis_url: str) -> None:
    answer = busq("worker", "shop:bus", "--queue", queue, url=redis_url)
    assert answer.returncode == 2
    assert f"--queue: {queue!r} will not do" in answer.stderr


def test_pools_without_a_page_to_show_them_on_are_a_usage_error(redis_url: str) -> None:
    answer = busq("watchdog", "--pool", "media=media:3", url=redis_url)
    assert answer.returncode == 2
    assert "--health-port" in answer.stderr


def test_on_a_terminal_log_lines_are_for_people(redis_url: str) -> None:
    hurried = ("--shutdown-timeout", "1", "--cleanup-timeout", "1")  # for the job that waits
    with terminal("worker", "shop:bus", *hurried, url=redis_url, columns=200) as shown:
        shown.read_until("worker.started")
        busq("enqueue", "wait", url=redis_url)
        assert "hunter22" not in shown.read_until("by way of logging")
        busq("enqueue", "fail", url=redis_url)
        text = shown.read_until("job.failed")
        assert "\x1b[" in text
        assert '{"' not in text
        text = shown.read_until("red")
        assert "\x1b[31mred" not in text
        shown.process.send_signal(signal.SIGTERM)
        shown.read_until(None)
        assert shown.process.wait() == 0


def test_a_workers_url_option_goes_over_that_of_the_code_and_the_environment(redis_url: str) -> None:
    with service("worker", "shop:bus", "--url", redis_url, "--queue", "media", url="redis://127.0.0.1:1/0") as worker:
        assert worker.until("worker.started")["queues"] == ["media"]
        [member] = document(busq("workers", "-o", "json", url=redis_url))
        assert member["card"]["queues"] == ["media"]


def test_a_watchdog_finalizes_what_ignores_its_cancel_and_exits_0(redis_url: str) -> None:
    with service("worker", "shop:bus", url=redis_url) as worker, service("watchdog", url=redis_url) as watchdog:
        worker.until("worker.started")
        watchdog.until("watchdog.started")
        busq("enqueue", "ignore", "--jid", "a", url=redis_url)
        worker.until("ignoring")
        [line] = document(busq("cancel", "a", "--wait", "20", "-o", "json", url=redis_url))
        assert (line["state"], line["ended"]) == ("cancelled", "abandoned")
        assert document(busq("suspects", "-o", "json", url=redis_url))[0]["jid"] == "a"
        watchdog.process.send_signal(signal.SIGTERM)
        assert watchdog.ended() == 0


@pytest.mark.parametrize("words", [["worker", "shop:bus"], ["watchdog"]])
def test_a_server_that_evicts_is_refused_unless_it_is_asked_for(own_server: RedisServer, words: list[str]) -> None:
    with own_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    answer = busq(*words, url=own_server.url)
    assert answer.returncode == 3
    assert "allkeys-lru" in answer.stderr
    assert "noeviction" in answer.stderr
    with service(*words, url=own_server.url, BUSQ_ALLOW_UNFIT="1") as running:
        running.until("server.unfit")
        running.until(lambda line: line["event"].endswith(".started"))


def test_uvloop_can_be_turned_off(redis_url: str) -> None:
    assert busq("stats", url=redis_url, BUSQ_LOOP="asyncio").returncode == 0
    assert busq("stats", url=redis_url, BUSQ_LOOP="magic").returncode == 2


def test_ctrl_c_while_waiting_is_clean(redis_url: str) -> None:
    with terminal("enqueue", "add", "--wait", url=redis_url) as shown:
        shown.read_until("waiting for its ending")
        with Redis.from_url(redis_url) as client:
            _until_someone_listens(client)
        shown.process.send_signal(signal.SIGINT)
        assert "Traceback" not in shown.read_until(None)
        assert shown.process.wait() == 130


def _until_someone_listens(client: Redis) -> None:
    """The waiter's subscription is the sign that it waits."""
    pause = threading.Event()
    for _ in range(600):
        if client.pubsub_channels():
            return
        pause.wait(0.05)
    raise AssertionError("nobody ever subscribed")
