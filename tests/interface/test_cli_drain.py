"""`busq drain` as people, and a pod's preStop, use it: real workers, asked from another process."""

from __future__ import annotations

import signal
import socket

from tests.interface.commands import busq, document, service
from tests.interface.test_metrics import PAGE
from tests.interface.test_supervisor import port_of, ready

PATIENT = ("--shutdown-timeout", "600")


def test_a_worker_is_drained_by_its_name_and_another_goes_on(redis_url: str) -> None:
    words = ("worker", "shop:bus", *PATIENT)
    with service(*words, url=redis_url) as running, service(*words, "--queue", "other", url=redis_url) as other:
        name = running.until("worker.started")["worker"]
        other.until("worker.started")
        answer = busq("drain", name, "--wait", "60", "-o", "json", url=redis_url)
        assert answer.returncode == 0, answer.stderr
        assert document(answer) == [{"worker": name, "host": socket.gethostname(), "running": 0, "answer": "gone"}]
        assert running.ended() == 0
        assert other.process.poll() is None
    asked = [line for line in running.lines if line["event"] == "worker.asked_to_drain"]
    assert [line["whole"] for line in asked] == ["worker"]


def test_all_workers_of_a_pod_drain_and_their_supervisor_starts_none_in_their_place(redis_url: str) -> None:
    with service("worker", "shop:bus", "--processes", "2", *PATIENT, url=redis_url) as running:
        first = running.until("worker.started")["worker"]
        running.until(lambda line: line["event"] == "worker.started" and line["worker"] != first)
        busq("enqueue", "wait", "--jid", "a", url=redis_url)
        running.until("waiting")
        answer = busq("drain", "--here", url=redis_url)
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.count("asked") == 2
        running.until("supervisor.draining")
        still = busq("drain", socket.gethostname(), "--wait", "0.5", "-o", "json", url=redis_url)
        assert still.returncode == 1
        assert "there" in {each["answer"] for each in document(still)}, "its job has all the time that it was given"
        running.process.send_signal(signal.SIGTERM)  # the first of its kind: no hurry
        assert busq("cancel", "a", "--wait", "60", url=redis_url).returncode == 0
        assert running.ended() == 0
    assert document(busq("get", "a", "-o", "json", url=redis_url))["ended"] == "confirmed"
    assert document(busq("workers", "-o", "json", url=redis_url)) == []
    assert sum(line["event"] == "process.ended" for line in running.lines) == 2


def test_a_blocked_worker_that_is_asked_to_drain_leaves_all_the_same(redis_url: str) -> None:
    words = ("worker", "shop:bus", "--shutdown-timeout", "0.1")
    with service(*words, url=redis_url, BUSQ_CLEANUP_S="0.1", BUSQ_FORCE_S="0.1") as running:
        name = running.until("worker.started")["worker"]
        busq("enqueue", "block", '["/nowhere/at/all"]', "--jid", "a", url=redis_url)
        running.until("blocking")
        assert busq("drain", name, "--wait", "60", url=redis_url).returncode == 0
        assert running.ended() == 0
    assert document(busq("get", "a", "-o", "json", url=redis_url))["state"] == "queued"


def test_who_is_not_there_is_told_with_exit_1(redis_url: str) -> None:
    with service("watchdog", *PAGE, url=redis_url) as running:
        name = running.until("watchdog.started")["watchdog"]
        ready(port_of(running))  # it is on the roster from its first pass on
        for who, words in (("nobody", "no worker 'nobody'"), (name, "is a watchdog, which holds no jobs")):
            answer = busq("drain", who, url=redis_url)
            assert answer.returncode == 1
            assert words in answer.stderr
            assert answer.stdout == ""
        assert busq("drain", url=redis_url).returncode == 2
        nameless = busq("drain", "", url=redis_url)
        assert (nameless.returncode, "the name is empty" in nameless.stderr) == (2, True)
        assert busq("drain", name, "--here", url=redis_url).returncode == 2
