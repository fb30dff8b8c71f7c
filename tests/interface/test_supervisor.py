"""`busq worker --processes N` as people run it: real processes, real signals, a real terminal."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.interface.commands import LIMIT_S, Service, busq, document, service, terminal
from tests.runtime.bench import BUSY_S
from tests.servers import RedisServer

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
TWO = ("worker", "shop:bus", "--processes", "2", "--health-port", "0", "--health-host", "127.0.0.1")


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=LIMIT_S) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as refusal:
        return refusal.code, refusal.read().decode()


def port_of(running: Service) -> int:
    port: int = running.until("health.serving")["port"]
    return port


def eventually(condition: Callable[[], Any]) -> Any:
    """What `condition` answers, once it is true; for what only a health page tells."""
    pause, end = threading.Event(), time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        pause.wait(0.05)
    raise AssertionError("never came true")


def ready(port: int) -> None:
    eventually(lambda: get(port, "/readyz")[0] == 200)


def workers_of(running: Service) -> list[int]:
    state = json.loads(get(port_of(running), "/")[1])
    return [process["pid"] for process in state["processes"]]


def signals_of(running: Service) -> list[tuple[str, str]]:
    """The signals that were heard, and by whom; "" for the supervisor."""
    return [(line.get("worker", ""), line["signal"]) for line in running.lines if line["event"] == "signal"]


def test_two_workers_are_kept_and_drained_together(redis_url: str) -> None:
    with service(*TWO, "--shutdown-timeout", "0.1", url=redis_url, BUSQ_CLEANUP_S="1") as running:
        ready(port_of(running))
        members = document(busq("workers", "-o", "json", url=redis_url))
        assert sorted(member["card"]["pid"] for member in members) == sorted(workers_of(running))
        busq("enqueue", "wait", "--jid", "a", url=redis_url)
        running.until("waiting")
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0
    assert running.lines[-1]["event"] == "supervisor.stopped"
    assert sum(line["event"] == "worker.stopped" for line in running.lines) == 2
    job = document(busq("get", "a", "-o", "json", url=redis_url))
    assert (job["state"], job["failures"], job["losses"]) == ("queued", 0, 0)
    assert document(busq("workers", "-o", "json", url=redis_url)) == []


def test_every_line_says_which_worker_it_is_of_in_the_children_too(redis_url: str) -> None:
    with service(*TWO, url=redis_url) as running:
        running.until("worker.started")
        busq("enqueue", "wait", "--jid", "a", url=redis_url)
        busq("enqueue", "child", "--jid", "b", url=redis_url)
        said = [running.until("waiting"), running.until("by way of logging"), running.until("by way of a child")]
    names = {line["worker"] for line in running.lines if line["event"] == "worker.started"}
    assert {line["worker"] for line in said} <= names
    assert {line["jid"] for line in said} == {"a", "b"}


def test_a_killed_worker_is_started_again_while_the_other_works_on(redis_url: str) -> None:
    with service(*TWO, url=redis_url) as running:
        port = port_of(running)
        ready(port)
        killed, other = workers_of(running)
        os.kill(killed, signal.SIGKILL)
        running.until("process.ended")
        eventually(lambda: "process 1" in get(port, "/readyz")[1] and workers_of(running)[0] not in (killed, None))
        assert get(port, "/livez")[0] == 200
        ready(port)
        assert workers_of(running)[1] == other
        answer = busq("enqueue", "add", "[1, 2]", "--wait", "20", url=redis_url)
        assert answer.returncode == 0, answer.stderr
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0


def test_while_a_worker_is_missing_it_is_not_ready_and_says_which(redis_url: str) -> None:
    with service(*TWO, url=redis_url) as running:
        port = port_of(running)
        ready(port)
        pid = workers_of(running)[1]
        os.kill(pid, signal.SIGSTOP)  # it does not answer any more, and is not ended for that so soon
        status, body = eventually(lambda: _unready(port))
        assert status == 503
        assert "[+]process 1 ok\n[-]process 2 has not answered for" in body
        assert get(port, "/livez")[0] == 200
        os.kill(pid, signal.SIGCONT)
        ready(port)
        assert workers_of(running)[1] == pid


def _unready(port: int) -> tuple[int, str] | None:
    answer = get(port, "/readyz")
    return answer if answer[0] != 200 else None


def test_before_the_first_has_started_it_says_so_and_no_other_is_started(own_server: RedisServer) -> None:
    own_server.pause()
    with service(*TWO, url=own_server.url) as running:
        port = port_of(running)
        assert get(port, "/startupz")[0] == 503
        assert get(port, "/livez")[0] == 200
        assert [process["lives"] for process in json.loads(get(port, "/")[1])["processes"]] == [1, 0]
        own_server.resume()
        ready(port)
        assert get(port, "/startupz")[0] == 200


def test_redis_away_makes_it_unready_and_ends_no_process(own_server: RedisServer) -> None:
    with service(*TWO, url=own_server.url) as running:
        port = port_of(running)
        ready(port)
        before = workers_of(running)
        own_server.kill()
        eventually(lambda: "redis: no answer to the beat" in get(port, "/readyz")[1])
        assert get(port, "/livez")[0] == 200
        own_server.start()
        ready(port)
        assert workers_of(running) == before


def test_an_application_that_cannot_be_run_is_told_once_with_exit_2() -> None:
    for app, said in [("broken:bus", "broken.py, line 6"), ("nothere:bus", "no module 'nothere'")]:
        answer = busq("worker", app, "--processes", "3", url="redis://127.0.0.1:1/0")
        assert answer.returncode == 2
        assert said in answer.stderr
        assert answer.stderr.count("\n") == 1


def test_a_server_that_is_not_there_is_told_once_with_exit_3() -> None:
    answer = busq("worker", "shop:bus", "--processes", "3", url="redis://:hunter22@127.0.0.1:1/0")
    assert answer.returncode == 3
    assert "not reachable" in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert "hunter22" not in answer.stderr


def test_a_taken_port_ends_it_before_any_worker_is_started(redis_url: str) -> None:
    with service(*TWO, url=redis_url) as running:
        port = str(port_of(running))
        for words in (["worker", "shop:bus", "--processes", "2"], ["worker", "shop:bus"], ["watchdog"]):
            answer = busq(*words, url=redis_url, BUSQ_HEALTH_PORT=port)
            assert answer.returncode == 2
            assert f":{port}: " in answer.stderr
            assert "started" not in answer.stderr


def test_a_second_signal_hurries_all_of_them(redis_url: str) -> None:
    with service(*TWO, "--shutdown-timeout", "600", url=redis_url, BUSQ_CLEANUP_S="1") as running:
        ready(port_of(running))
        busq("enqueue", "wait", "--jid", "a", url=redis_url)
        name = running.until("waiting")["worker"]
        running.process.send_signal(signal.SIGTERM)
        # That very one: two signals of a kind are one to a process that has not had its turn in between.
        running.until(lambda line: line["event"] == "worker.draining" and line["worker"] == name)
        eventually(lambda: get(port_of(running), "/readyz")[1].startswith("[-]draining"))
        running.process.send_signal(signal.SIGINT)
        assert running.ended() == 0
    assert document(busq("get", "a", "-o", "json", url=redis_url))["state"] == "queued"


def test_ctrl_c_in_a_terminal_reaches_each_worker_once(redis_url: str) -> None:
    """The terminal signals its whole foreground group; a worker hit twice would hurry."""
    words = ("worker", "shop:bus", "--processes", "2", "--shutdown-timeout", "600")
    with terminal(*words, url=redis_url, columns=200, NO_COLOR="1") as shown:
        shown.read_until("worker.started")
        busq("enqueue", "fail", url=redis_url)
        shown.read_until("job.failed")
        _read_until_twice(shown, "worker.started")
        shown.press_ctrl_c()
        text = shown.read_until(None)
        assert shown.process.wait() == 0
    assert re.findall(r"signal=(\w+)", text) == ["SIGINT", "SIGTERM", "SIGTERM"]
    assert "supervisor.stopped" in text
    assert "Traceback" not in text


def _read_until_twice(shown: Any, word: str) -> None:
    while shown.shown.count(word) < 2:
        before = len(shown.shown)
        shown.shown, kept = "", shown.shown
        shown.read_until("\n")
        shown.shown = kept + shown.shown
        assert len(shown.shown) > before


@ON_LINUX
def test_no_worker_outlives_a_killed_supervisor(redis_url: str) -> None:
    with service(*TWO, url=redis_url) as running:
        ready(port_of(running))
        busq("enqueue", "ignore", url=redis_url)
        running.until("ignoring")
        watched = [os.pidfd_open(pid) for pid in workers_of(running)]
        began = time.monotonic()
        running.process.kill()
        for descriptor in watched:
            assert select.select([descriptor], [], [], LIMIT_S)[0]
            os.close(descriptor)
        assert time.monotonic() - began < 1.0 + BUSY_S


def test_a_handler_of_a_kept_worker_finds_our_environment_as_it_was(redis_url: str) -> None:
    """PYTHONPATH above all: another Python that a handler starts must not be led to the modules of this one."""
    with service(*TWO, url=redis_url, SOME_SETTING="1") as running:
        ready(port_of(running))
        for pid in workers_of(running):
            own = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            parent = Path(f"/proc/{running.process.pid}/environ").read_bytes().split(b"\0")
            assert own == parent


# One worker, one watchdog ------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["worker", "shop:bus"], ["watchdog"]])
def test_a_single_process_serves_its_own_page(redis_url: str, words: list[str]) -> None:
    with service(*words, url=redis_url, BUSQ_HEALTH_PORT="0", BUSQ_HEALTH_HOST="127.0.0.1") as running:
        port = port_of(running)
        ready(port)
        assert (get(port, "/livez")[0], get(port, "/startupz")[0]) == (200, 200)
        state = json.loads(get(port, "/")[1])
        assert (state["role"], state["pid"], state["started"]) == (words[0], running.process.pid, True)
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0
        assert "Traceback" not in running.text


def test_a_blocked_loop_does_not_answer_and_says_so_to_its_supervisor(redis_url: str, tmp_path: Path) -> None:
    way_out = tmp_path / "open"
    with service(*TWO[:2], *TWO[4:], url=redis_url) as alone, service(*TWO, "--queue", "other", url=redis_url) as kept:
        for running, queue in ((alone, "default"), (kept, "other")):
            port = port_of(running)
            ready(port)
            busq("enqueue", "block", json.dumps([str(way_out)]), "--queue", queue, url=redis_url)
            running.until("blocking")
        with pytest.raises(TimeoutError):
            urlopen(f"http://127.0.0.1:{port_of(alone)}/livez", timeout=0.5)
        _, body = eventually(lambda: _unready(port_of(kept)))
        assert "its loop has not answered for" in body
        assert get(port_of(kept), "/livez")[0] == 200
        way_out.touch()
        for running in (alone, kept):
            ready(port_of(running))
