"""Enqueueing, cancelling and looking from the command line, against a real server."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import pytest
from redis import Redis

from busq.client.bus import Bus
from tests.interface.commands import COMMAND, busq, document, environ, service, terminal

EVIL = "\x1b]0;owned\x07\x1b[31m\u202e"


def test_a_job_that_is_waited_for_prints_its_record_and_succeeds(redis_url: str) -> None:
    with service("worker", "shop:bus", url=redis_url):
        answer = busq("enqueue", "add", "[1, 2]", "--wait", "20", "-o", "json", url=redis_url)
        by_name = busq("enqueue", "add", "-", "--wait", "20", "-o", "json", url=redis_url, stdin='{"a": 5}')
        failed = busq("enqueue", "fail", "--wait", "20", url=redis_url)
    assert answer.returncode == 0
    assert (document(answer)["state"], document(answer)["result"]) == ("succeeded", 3)
    assert document(by_name)["result"] == 6
    assert failed.returncode == 1
    assert "ValueError: no \\x1b[31mred" in failed.stdout
    assert "\x1b" not in failed.stdout


def test_a_wait_that_is_too_short_is_the_answer_no(redis_url: str) -> None:
    answer = busq("enqueue", "add", "--jid", "a", "--wait", "0.1", "-o", "json", url=redis_url)
    assert answer.returncode == 1
    assert document(answer)["state"] == "queued"
    assert "still queued" in answer.stderr


def test_enqueue_prints_the_jid_and_nothing_else(redis_url: str) -> None:
    plain = busq("enqueue", "add", "[1]", "--jid", "mine", url=redis_url)
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, "mine\n", "")
    told = busq("enqueue", "add", "--delay", "60", "--tag", "a=b", "--group", "g", "-o", "json", url=redis_url)
    assert document(told).keys() == {"jid", "kind", "queue", "state"}
    job = document(busq("get", document(told)["jid"], "-o", "json", url=redis_url))
    assert (job["state"], job["group"], job["tags"]) == ("scheduled", "g", {"a": "b"})
    again = busq("enqueue", "add", "--jid", "mine", url=redis_url)
    assert again.returncode == 2
    assert "in use" in again.stderr


def test_a_child_and_its_key_are_given_and_shown(redis_url: str) -> None:
    assert busq("enqueue", "add", "--jid", "a", url=redis_url).returncode == 0
    words = ["--parent", "a", "--on-parent-cancel", "wait", "--key", "report 7", "--supersede"]
    told = busq("enqueue", "add", "--jid", "b", *words, url=redis_url)
    assert (told.returncode, told.stderr) == (0, "")
    job = document(busq("get", "b", "-o", "json", url=redis_url))
    assert (job["parent"], job["on_parent_cancel"], job["key"]) == ("a", "wait", "report 7")
    shown = busq("get", "b", url=redis_url).stdout
    for line in (r"parent +a", r"on parent's cancel +wait", r"key +report 7"):
        assert re.search(f"^{line}$", shown, re.MULTILINE)
    orphan = busq("enqueue", "add", "--parent", "nobody", url=redis_url)
    assert (orphan.returncode, "parent 'nobody' is unknown" in orphan.stderr) == (2, True)


def test_moments_are_given_in_seconds_and_shown(redis_url: str) -> None:
    told = busq("enqueue", "add", "--jid", "a", "--expires", "60", "--deadline", "90", url=redis_url)
    assert told.returncode == 0
    job = document(busq("get", "a", "-o", "json", url=redis_url))
    assert job["enqueued_at"] < job["expires_at"] < job["due_by"]
    shown = busq("get", "a", url=redis_url).stdout
    assert re.search(r"^expires +\d{4}-", shown, re.MULTILINE)
    assert re.search(r"^due by +\d{4}-", shown, re.MULTILINE)
    never = busq("enqueue", "add", "--expires", "5", "--delay", "10", url=redis_url)
    assert never.returncode == 2
    assert "would never start" in never.stderr


def test_cancel_gives_a_verdict_for_each_jid_and_says_no_when_one_is_unknown(redis_url: str) -> None:
    busq("enqueue", "add", "--jid", "a", url=redis_url)
    answer = busq("cancel", "a", "nope", "-o", "json", "--reason", "why", url=redis_url)
    assert answer.returncode == 1
    assert [(line["jid"], line["verdict"]) for line in document(answer)] == [("a", "cancelled"), ("nope", "not_found")]
    job = document(busq("get", "a", "-o", "json", url=redis_url))
    assert (job["reason"], job["source"], job["ended"]) == ("why", "cli", "before_start")
    piped = busq("cancel", "-", "-o", "json", url=redis_url, stdin="a\n")
    assert (piped.returncode, document(piped)[0]["verdict"]) == (0, "already_cancelled")
    stone = busq("cancel", "later", "--tombstone", "60", "-o", "json", url=redis_url)
    assert (stone.returncode, document(stone)[0]["verdict"]) == (0, "tombstoned")


def test_cancel_with_wait_says_how_the_job_ended(redis_url: str) -> None:
    with service("worker", "shop:bus", url=redis_url) as worker:
        busq("enqueue", "wait", "--jid", "a", url=redis_url)
        worker.until("waiting")
        answer = busq("cancel", "a", "--wait", "20", "-o", "json", url=redis_url)
    [line] = document(answer)
    assert answer.returncode == 0
    assert (line["verdict"], line["state"], line["ended"]) == ("signalled", "cancelled", "confirmed")
    assert 0 <= line["took_s"] < 20


def test_a_cancelled_job_shows_what_cleans_up_after_it(redis_url: str) -> None:
    with service("worker", "shop:bus", url=redis_url) as worker:
        busq("enqueue", "wait", "--jid", "a", url=redis_url)
        worker.until("waiting")
        busq("cancel", "a", "--wait", "20", url=redis_url)
        hook = document(busq("get", "a", "-o", "json", url=redis_url))["hook"]
        bus = Bus(redis_url).blocking
        bus.wait(hook, timeout=20)
        bus.close()
    assert re.search(rf"^hook +{re.escape(hook)}  \(succeeded\)$", busq("get", "a", url=redis_url).stdout, re.MULTILINE)
    shown = document(busq("get", hook, "-o", "json", url=redis_url))
    assert (shown["kind"], shown["queue"]) == ("wait/on_cancel", "default/on_cancel")
    assert (shown["hook_of"], shown["result"]) == ("a", "tidied up after a")
    told = busq("history", "a", url=redis_url).stdout
    assert re.search(rf"hook_started.*try 1 \({re.escape(hook)}\)$", told, re.MULTILINE)
    assert re.search(rf"hook_ended.*try 1: succeeded \({re.escape(hook)}\)$", told, re.MULTILINE)
    assert "default/on_cancel" in busq("stats", url=redis_url).stdout
    listed = document(busq("list", "--queue", "default/on_cancel", "-o", "json", url=redis_url))
    assert [job["jid"] for job in listed] == [hook]


def test_what_is_not_there_is_the_answer_no(redis_url: str) -> None:
    for words in (["get", "nope"], ["history", "nope"]):
        answer = busq(*words, url=redis_url)
        assert (answer.returncode, answer.stdout) == (1, "")
        assert "no job 'nope'" in answer.stderr


def test_every_command_that_looks_speaks_json_alone_on_stdout(redis_url: str) -> None:
    busq("enqueue", "add", "[1]", "--jid", "a", url=redis_url)
    assert document(busq("list", "--state", "queued", "--kind", "add", "-o", "json", url=redis_url))[0]["jid"] == "a"
    assert document(busq("list", "--queue", "other", "-o", "json", url=redis_url)) == []
    assert document(busq("history", "a", "-o", "json", url=redis_url))[0]["name"] == "enqueued"
    assert document(busq("stats", "-o", "json", url=redis_url))["now"]["queued"] == 1
    assert document(busq("workers", "-o", "json", url=redis_url)) == []
    assert document(busq("suspects", "-o", "json", url=redis_url)) == []
    assert document(busq("dead", "list", "-o", "json", url=redis_url)) == []
    assert document(busq("top", "-o", "json", url=redis_url)).keys() == {"at", "stats", "jobs", "workers"}


@pytest.mark.parametrize("output", ["table", "json"])
def test_terminal_escapes_in_a_job_are_printed_harmless(redis_url: str, output: str) -> None:
    busq("enqueue", "add", "--jid", "a", url=redis_url)
    with Redis.from_url(redis_url) as client:
        client.hset("busq:{0}:job:a", mapping={"kind": EVIL, "reason": EVIL, "group": EVIL})
    for words in (["get", "a"], ["list"], ["top"]):
        answer = busq(*words, "-o", output, url=redis_url)
        assert answer.returncode == 0
        assert not set(answer.stdout) & {"\x1b", "\x07", "\u202e"}
    with terminal("list", "-o", output, url=redis_url) as shown:
        assert "\x1b]0;" not in shown.read_until(None)


def test_dead_letters_are_tried_again_or_thrown_away(redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        busq("enqueue", "add", "[1]", "--jid", "a", url=redis_url)
        payload = client.hget("busq:{0}:job:a", "payload")
        letter = {"reason": "unknown_kind", "jid": "x", "kind": "add", "queue": "late", "payload": payload, "at": "1"}
        good = client.xadd("busq:{0}:dead", letter).decode()
        bad = client.xadd("busq:{0}:dead", {"reason": "bad_entry", "raw": b"\xff\x1b"}).decode()
        torn = client.xadd("busq:{0}:dead", letter | {"payload": b"\xff"}).decode()
        hook = client.xadd("busq:{0}:dead", letter | {"kind": "add/on_cancel", "queue": "late/on_cancel"}).decode()
        finalizer = client.xadd("busq:{0}:dead", letter | {"kind": "add/finalize"}).decode()
    assert len(busq("dead", "list", url=redis_url).stdout.splitlines()) == 6
    letters = [f"0/{each}" for each in (good, bad, torn, hook, finalizer)]
    answer = busq("dead", "retry", *letters, "-o", "json", url=redis_url)
    assert answer.returncode == 1
    first, second, third, fourth, fifth = document(answer)
    assert second["jid"] is third["jid"] is fourth["jid"] is fifth["jid"] is None
    assert "it was a finalizer" in fifth["error"]
    assert "hook" in fourth["error"]
    assert "no job" in second["error"]
    job = document(busq("get", first["jid"], "-o", "json", url=redis_url))
    assert (job["kind"], job["queue"], job["args"], job["state"]) == ("add", "late", [1], "queued")
    assert len(document(busq("dead", "list", "-o", "json", url=redis_url))) == 4
    assert busq("dead", "purge", "0/1-1", url=redis_url).returncode == 1
    assert busq("dead", "purge", "--all", url=redis_url).stdout == "4 purged\n"


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal_and_keep_the_jid_whole(redis_url: str, columns: int) -> None:
    jid = document(busq("enqueue", "add", "--queue", "a-rather-long-name", "-o", "json", url=redis_url))["jid"]
    with terminal("list", url=redis_url, columns=columns, NO_COLOR="1") as shown:
        lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.read_until(None)).splitlines()
    assert any(line.startswith(jid) for line in lines)
    assert all(len(line) <= columns for line in lines)


def test_a_reader_that_goes_away_is_no_error(redis_url: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # before the first word
    with subprocess.Popen(
        [*COMMAND, "stats"], stdout=writer, stderr=subprocess.PIPE, env=environ(redis_url)
    ) as process:
        os.close(writer)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_top_lives_on_a_terminal_until_ctrl_c(redis_url: str) -> None:
    busq("enqueue", "add", "--queue", "lively", url=redis_url)
    with terminal("top", "--interval", "0.05", url=redis_url, columns=120) as shown:
        shown.read_until("lively")
        shown.process.send_signal(signal.SIGINT)
        assert "Traceback" not in shown.read_until(None)
        assert shown.process.wait() == 130
