"""What a command line may get wrong, and what cannot be reached: one clear line, and the exit code for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from busq.cli.app import prepared
from tests.interface.commands import APPS, busq, environ

NOWHERE = "redis://:hunter22@127.0.0.1:1/0"


@pytest.mark.parametrize("words", [["stats"], ["worker", "shop:bus"], ["watchdog"], ["enqueue", "add"], ["doctor"]])
def test_without_a_url_it_says_what_would_do(words: list[str]) -> None:
    answer = busq(*words)
    assert answer.returncode == 2
    assert answer.stdout == ""
    for way in ("BUSQ_URL", "--url", "busq dev"):
        assert way in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["stats"], ["worker", "shop:bus"], ["watchdog"], ["cancel", "a"], ["top"]])
def test_a_server_that_is_not_there_is_exit_3_in_one_line_without_the_password(words: list[str]) -> None:
    answer = busq(*words, url=NOWHERE)
    assert answer.returncode == 3
    assert answer.stderr.count("\n") == 1
    assert "not reachable" in answer.stderr
    assert "hunter22" not in answer.stdout + answer.stderr


def test_an_unknown_command_is_answered_with_the_nearest_one() -> None:
    answer = busq("cancle", "a")
    assert answer.returncode == 2
    assert 'Did you mean "cancel"' in answer.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cancel"], "JID"),
        (["get", "a b"], "a jid takes"),
        (["list", "--state", "bogus"], "bogus"),
        (["enqueue", "add", "[1"], "no JSON document"),
        (["enqueue", "add", "5"], "takes an array"),
        (["enqueue", "add", "--tag", "x"], "name=value"),
        (["enqueue", "add", "--on-parent-cancel", "wait"], "has no parent"),
        (["enqueue", "add", "--parent", "a", "--on-parent-cancel", "stay"], "stay"),
        (["enqueue", "add", "--key", "a"], "give both or neither"),
        (["enqueue", "add", "--supersede"], "give key= too"),
        (["dead", "purge"], "--all"),
        (["stats", "--url", "http://x"], "redis://"),
        (["stats", "--namespace", "a b"], "namespace"),
        (["worker", "shop:bus", "--concurrency", "0"], "--concurrency"),
        (["worker", "shop:bus", "--processes", "0"], "--processes"),
        (["worker", "shop:bus", "--health-port", "65536"], "--health-port"),
        (["worker", "shop:bus", "--health-port", "0", "--health-host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["watchdog", "--health-port", "-1"], "--health-port"),
        (["watchdog", "--interval", "-1"], "watchdog_interval_s"),
    ],
)
def test_wrong_usage_is_exit_2_and_names_what_is_wrong(words: list[str], said: str) -> None:
    answer = busq(*words, url=NOWHERE)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("shop", "module:bus"),
        ("shop.py:bus", "shop:bus"),
        ("nothere:bus", "no module 'nothere'"),
        ("shop:buss", "did you mean shop:bus?"),
        ("shop:not_a_bus", "is of type int"),
        ("shop:empty", "declares no handlers"),
        ("broken:bus", "NameError"),
    ],
)
def test_an_app_that_cannot_be_run_is_told_with_its_reason(app: str, said: str) -> None:
    answer = busq("worker", app, url=NOWHERE)
    assert answer.returncode == 2
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_answer_for_which_there_is_no_room_is_no_mistake_of_ours(redis_url: str) -> None:
    with open("/dev/full", "wb") as full:
        answer = subprocess.run(
            [sys.executable, "-m", "busq", "stats"], stdout=full, stderr=subprocess.PIPE, env=environ(redis_url),
            text=True, check=False,
        )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (1, "busq: the answer could not be written: No space left on device\n")


def test_an_error_in_the_application_is_told_with_its_line() -> None:
    assert "broken.py, line 6" in busq("worker", "broken:bus", url=NOWHERE).stderr


def test_help_does_not_import_what_it_does_not_need() -> None:
    code = (
        "import sys\n"
        "from busq.cli import app\n"
        "before = set(sys.modules)\n"
        "app.run(['cancel', '--help'])\n"
        "heavy = ('busq.worker', 'busq.store', 'rich.live')\n"
        "print([m for m in set(sys.modules) - before if m.startswith(heavy)] or 'nothing', file=sys.stderr)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=APPS, env=environ(None), check=True
    )
    assert answer.stderr.strip() == "nothing"
    assert "--tombstone" in answer.stdout


def test_wait_may_stand_without_a_number_and_a_dash_means_stdin() -> None:
    assert prepared(["cancel", "--wait", "a"]) == ["cancel", "--wait=inf", "a"]
    assert prepared(["cancel", "--wait", "2.5", "a"]) == ["cancel", "--wait", "2.5", "a"]
    assert prepared(["cancel", "a", "--wait"]) == ["cancel", "a", "--wait=inf"]
    assert prepared(["cancel", "-"]) == ["cancel", "/dev/stdin"]
    assert prepared(["cancel", "a", "--reason", "-"]) == ["cancel", "a", "--reason", "-"]
    assert prepared(["cancel", "--", "-", "--wait"]) == ["cancel", "--", "-", "--wait"]
