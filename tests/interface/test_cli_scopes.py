"""Cancelling by filter from the command line: the question, the answer, and the rules that it makes."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from busq.cli import app, exits, moments
from busq.client.bus import Bus
from busq.errors import UsageError
from tests.interface.commands import document, service, terminal
from tests.roles import deploy
from tests.servers import RedisServer

NOWHERE = "redis://:hunter22@127.0.0.1:1/0"

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run one command to its end in this process, which has it started already; else as `commands.busq` does."""

    def run(*words: str, url: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("BUSQ_URL", url)
        code = exits.run(lambda: app.run(words))
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return run


def test_a_user_who_may_cancel_and_not_look_at_the_roster_is_told_of_the_scope(
    server_with_users: RedisServer, command: Command
) -> None:
    """A canceller; whether a watchdog is there is not for it to know."""
    server_with_users.flush()
    asyncio.run(deploy(server_with_users.url))
    url = server_with_users.url_for("canceller")
    answer = command("cancel", "--group", "g", "-o", "json", url=url)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert document(answer)["id"].startswith("s-")


# What is asked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "JIDs, or --group"),
        (["--dry-run"], "--everything"),
        (["--standing", "--until", "2h"], "--everything"),
        (["a", "--group", "g"], "--group does not go with them"),
        (["a", "--jid-prefix", "b"], "--jid-prefix does not go with them"),
        (["a", "--dry-run"], "--dry-run does not go with them"),
        (["--group", "g", "--tombstone", "5"], "--standing"),
        (["--group", "g", "--until", "2h"], "give --standing"),
        (["--group", "g", "--standing", "--expect", "d"], "--expect"),
        (["--group", "g", "--dry-run", "--wait", "5"], "--wait"),
        (["--group", "g", "--wait", "-1"], "--wait"),
        (["a", "--wait", "-1"], "--wait"),
        (["--group", "g", "--before", "yesterday"], "--before: 'yesterday'"),
        (["--group", "g", "--standing", "--until", "soon"], "--until: 'soon'"),
        (["--group", "g", "--standing", "--until", "0s"], "until: 0 s from now will not do"),
        (["--tag", "x"], "name=value"),
        (["--descendants-of", "a b"], "descendants_of"),
    ],
)
def test_wrong_usage_is_exit_2_and_says_what_would_do(command: Command, words: list[str], said: str) -> None:
    answer = command("cancel", *words, url=NOWHERE)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert said in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_mistake_in_an_expression_is_pointed_at(command: Command) -> None:
    answer = command("cancel", "--where", "kind == 'k' and attempt >> 1", url=NOWHERE)
    assert (answer.returncode, answer.stdout) == (2, "")
    said, shown, caret = answer.stderr.splitlines()
    assert said.startswith("busq: where: ")
    assert shown.strip() == "kind == 'k' and attempt >> 1"
    assert shown[: caret.index("^")].rstrip().endswith((">", "attempt"))


@pytest.mark.parametrize("words", [["cancel", "--group", "g"], ["cancel", "--everything", "--dry-run"], ["rules"],
                                   ["rules", "revoke", "s-1"]])  # fmt: skip
def test_a_server_that_is_not_there_is_exit_3_in_one_line_without_the_password(
    command: Command, words: list[str]
) -> None:
    answer = command(*words, url=NOWHERE)
    assert (answer.returncode, answer.stderr.count("\n")) == (3, 1)
    assert "hunter22" not in answer.stdout + answer.stderr


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("words", "moment"),
    [
        ("90s", NOON - timedelta(seconds=90)),
        ("10m ago", NOON - timedelta(minutes=10)),
        ("1.5 h ago", NOON - timedelta(minutes=90)),
        ("7d", NOON - timedelta(days=7)),
        ("2026-01-01", datetime(2026, 1, 1, tzinfo=UTC)),
        ("2026-01-02T10:30", NOON - timedelta(minutes=90)),
        ("2026-01-02T11:30+01:00", NOON - timedelta(minutes=90)),
        ("2026-01-02 10:30:00.000 UTC", NOON - timedelta(minutes=90)),
    ],
)
def test_moments_are_read_as_people_write_them(words: str, moment: datetime) -> None:
    assert moments.ago(words, "--before", NOON) == moment


@pytest.mark.parametrize("words", ["", "10", "10 minutes", "-5m", "2026-13-01", "1e3s", "99999999999d", "9999999d"])
def test_other_words_are_no_moments(words: str) -> None:
    with pytest.raises(UsageError, match="--before"):
        moments.ago(words, "--before", NOON)


# What is answered --------------------------------------------------------------------------------------------


def test_a_group_is_cancelled_and_waited_for(command: Command, redis_url: str) -> None:
    with service("worker", "shop:bus", url=redis_url) as worker, service("watchdog", url=redis_url):
        command("enqueue", "wait", "--jid", "a", "--group", "g", url=redis_url)
        command("enqueue", "add", "--jid", "b", "--group", "g", "--delay", "60", url=redis_url)
        command("enqueue", "add", "--jid", "c", "--delay", "60", url=redis_url)
        worker.until("waiting")
        words = ("cancel", "--group", "g", "--reason", "the user left", "--wait", "20", "-o", "json")
        answer = command(*words, url=redis_url)
        seen = document(answer)
        assert answer.returncode == 0
        assert (seen["state"], seen["unfinished"]) == ("settled", 0)
        assert seen["counts"] == {"cancelled": 1, "signalled": 1}
        assert seen["endings"] == {"before_start": 1, "confirmed": 1}
        assert f"scope {seen['id']} is decided" in answer.stderr
        found = document(command("list", "--state", "cancelled", "-o", "json", url=redis_url))
        assert {(job["jid"], job["cause"], job["scope"], job["reason"], job["source"]) for job in found} == {
            (jid, "scope", seen["id"], "the user left", "cli") for jid in "ab"
        }
        header, *lines = command("list", "--state", "cancelled", url=redis_url).stdout.splitlines()
        assert header.split() == ["JID", "KIND", "ENDED", "CAUSE", "SCOPE", "REASON", "SOURCE", "SINCE"]
        for line in lines:
            assert re.search(rf"(before_start|confirmed) +scope +{seen['id']} +the user left +cli", line)
        with terminal("list", "--state", "cancelled", url=redis_url, NO_COLOR="1") as narrow:
            told = "".join(narrow.read_until(None).split())
        for facts in (f"scope{seen['id'][:20]}", "theuserleft", "(bycli)"):
            assert facts in told, "a narrow terminal leaves nothing of it out"
        assert re.search(rf"^scope +{seen['id']}$", command("get", "a", url=redis_url).stdout, re.MULTILINE)
        assert document(command("get", "c", "-o", "json", url=redis_url))["state"] == "scheduled"
        shown = command("cancel", "--group", "g", "--wait", "20", url=redis_url)
        assert shown.returncode == 0
        assert re.search(r"^cancelled +0\nsignalled +0$", shown.stdout, re.MULTILINE)


def test_every_filter_has_an_option(command: Command, redis_url: str) -> None:
    bus = Bus(redis_url)
    bus.blocking.enqueue_many(
        bus.options(**given).spec("other" if given["jid"] == "named" else "k")
        for given in (
            {"jid": "grouped", "group": "g"}, {"jid": "queued", "queue": "media"}, {"jid": "order-1"}, {"jid": "named"},
            {"jid": "tagged", "tags": {"t": "1", "u": "2"}}, {"jid": "half-tagged", "tags": {"t": "1"}},
        )
    )  # fmt: skip
    bus.blocking.close()

    def hit(*words: str) -> int:
        return int(document(command("cancel", *words, "--dry-run", "-o", "json", url=redis_url))["jobs"])

    assert (
        hit("--group", "g") == hit("--queue", "media") == hit("--jid-prefix", "order-") == hit("--kind", "other") == 1
    )
    assert (hit("--tag", "t=1"), hit("--tag", "t=1", "--tag", "u=2")) == (2, 1)
    assert hit("--where", "jid == 'order-1' or kind == 'other'") == 2
    assert (hit("--before", "1h"), hit("--before", "0s ago"), hit("--everything")) == (0, 6, 6)
    assert hit("--descendants-of", "grouped") == hit("--worker", "nobody") == 0
    assert hit("--everything", "--kind", "k") == 5


def test_a_dry_run_cancels_nothing_and_its_digest_is_the_way_to(command: Command, redis_url: str) -> None:
    command("enqueue", "k", "--jid", "a", "--group", "g", url=redis_url)
    shown = command("cancel", "--group", "g", "--dry-run", url=redis_url)
    assert (shown.returncode, shown.stderr) == (
        0, "Nothing was cancelled. --expect DIGEST cancels this picture, or nothing when it has changed.\n",
    )  # fmt: skip
    survey = document(command("cancel", "--group", "g", "--dry-run", "-o", "json", url=redis_url))
    assert (survey["jobs"], survey["kinds"], survey["states"]) == (1, {"k": 1}, {"queued": 1})
    assert re.search(rf"^digest +{survey['digest']}$", shown.stdout, re.MULTILINE)
    command("enqueue", "k", "--jid", "b", "--group", "g", url=redis_url)
    refused = command("cancel", "--group", "g", "--expect", survey["digest"], "-o", "json", url=redis_url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "nothing was cancelled" in refused.stderr
    assert document(command("get", "a", "-o", "json", url=redis_url))["state"] == "queued"
    [digest] = set(re.findall(r"found was '(\w+)'", refused.stderr))
    done = command("cancel", "--group", "g", "--expect", digest, "-o", "json", url=redis_url)
    assert done.returncode == 0
    assert document(done)["id"].startswith("s-")
    assert document(command("get", "a", "-o", "json", url=redis_url))["state"] == "cancelled"


def test_what_is_not_done_in_time_is_the_answer_no_and_says_what_is_missing(command: Command, redis_url: str) -> None:
    with service("worker", "shop:bus", url=redis_url) as worker, service("watchdog", url=redis_url):
        command("enqueue", "ignore", "--jid", "a", "--group", "g", url=redis_url)
        worker.until("ignoring")
        answer = command("cancel", "--group", "g", "--grace", "60", "--wait", "0.3", "-o", "json", url=redis_url)
        assert answer.returncode == 1
        assert document(answer)["state"] in ("settling", "settled")
        assert "was not done after 0.3 s" in answer.stderr


def test_progress_is_shown_on_a_terminal_until_ctrl_c(command: Command, redis_url: str) -> None:
    with service("worker", "shop:bus", url=redis_url) as worker, service("watchdog", url=redis_url):
        command("enqueue", "ignore", "--jid", "a", "--group", "g", url=redis_url)
        worker.until("ignoring")
        with terminal("cancel", "--group", "g", "--grace", "60", "--wait", url=redis_url, NO_COLOR="1") as shown:
            shown.read_until("running jobs ended")
            shown.read_until("0/1")
            shown.press_ctrl_c()
            assert "Traceback" not in shown.read_until(None)
            assert shown.process.wait() == 130
    assert document(command("get", "a", "-o", "json", url=redis_url))["reason"] == ""


def test_an_answer_while_records_are_settling_says_so_and_that_it_takes_a_watchdog(
    command: Command, redis_url: str
) -> None:
    """`cancelled 0` alone would read as if nothing had been hit."""
    command("enqueue", "k", "--jid", "a", "--group", "g", url=redis_url)
    answer = command("cancel", "--group", "g", url=redis_url)
    assert answer.returncode == 0
    assert re.search(r"^settling +no watchdog has begun with it yet$", answer.stdout, re.MULTILINE)
    assert "busq: no watchdog is alive" in answer.stderr
    assert "It is decided: nothing that it hits starts any more" in answer.stderr
    late = command("cancel", "--group", "g", "--wait", "0.01", url=redis_url)
    assert late.returncode == 1
    assert "still settling, no watchdog has begun with it yet" in late.stderr
    with service("watchdog", url=redis_url) as watchdog:
        watchdog.until("rules.settled")  # it has been on the roster since before its first sweep
        done = command("cancel", "--group", "g", "--wait", "20", url=redis_url)
    assert (done.returncode, "no watchdog" in done.stderr, "It is decided" in done.stderr) == (0, False, False)


# Rules -------------------------------------------------------------------------------------------------------


def test_a_standing_rule_is_listed_and_can_be_taken_back(command: Command, redis_url: str) -> None:
    nothing = command("rules", url=redis_url)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "No live rules" in nothing.stderr
    words = ("--group", "g", "--kind", "k", "--standing", "--until", "2h", "--reason", "not today", "-o", "json")
    rule = document(command("cancel", *words, url=redis_url))["id"]
    command("enqueue", "k", "--jid", "late", "--group", "g", url=redis_url)
    [line] = document(command("rules", "-o", "json", url=redis_url))
    assert (line["id"], line["standing"], line["state"]) == (rule, True, "settling")
    assert (line["reason"], line["source"], line["counts"]) == ("not today", "cli", {"cancelled": 1, "signalled": 0})
    until = datetime.fromisoformat(line["until"]) - datetime.fromisoformat(line["decided_at"])
    assert abs(until - timedelta(hours=2)) < timedelta(minutes=1)
    header, shown = command("rules", url=redis_url).stdout.splitlines()
    assert header.split() == ["ID", "STATE", "WHAT", "HIT", "UNTIL", "AGE", "REASON", "SOURCE"]
    for word in (rule, "settling", "group 'g'", "cancelled 1", "UTC", "not today", "cli"):
        assert word in shown
    assert document(command("stats", "-o", "json", url=redis_url))["rules"] == 1
    assert "1 live" in command("stats", url=redis_url).stdout
    answer = command("rules", "revoke", rule, "s-nobody", "-o", "json", url=redis_url)
    assert answer.returncode == 1
    first, second = document(answer)
    assert (first["id"], first["revoked"]) == (rule, True)
    assert (second["revoked"], "no scope 's-nobody'" in second["error"]) == (False, True)
    assert document(command("rules", "-o", "json", url=redis_url)) == []
    command("enqueue", "k", "--jid", "later", "--group", "g", url=redis_url)
    assert document(command("get", "later", "-o", "json", url=redis_url))["state"] == "queued"
