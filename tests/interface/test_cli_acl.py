"""`busq acl`: rules that a server takes as they are printed, and no password in clear."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from redis import Redis

from busq.cli import app, exits
from busq.store.roles import Role
from tests.servers import RedisServer

PASSWORD = "a-password-for-a-role"


def acl(*words: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    """What it says, on stdout and on stderr."""
    assert exits.run(lambda: app.run(["acl", *words])) == code
    said = capsys.readouterr()
    return said.out, said.err


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    return str(file)


@pytest.mark.parametrize("role", Role)
def test_a_server_takes_every_rule_and_lets_the_user_in(
    redis_server: RedisServer, password_file: str, role: Role, capsys: pytest.CaptureFixture[str]
) -> None:
    url = redis_server.url_for("tester")
    line, told = acl(role, "--user", "one", "--password-file", password_file, "--url", url, capsys=capsys)
    command, _ = acl(role, "--user", "one", "--password-file", password_file, "--setuser", "--url", url, capsys=capsys)
    assert told == "", "the server was asked, and knows every command that is left"
    assert (line.split()[:2], command.split()[:3]) == (["user", "one"], ["ACL", "SETUSER", "one"])
    assert line.split()[2:] == command.split()[3:]
    assert PASSWORD not in line
    with redis_server.client() as client:
        client.execute_command(*command.split())
        try:
            with Redis(port=redis_server.port, username="one", password=PASSWORD) as user:
                assert user.ping()
                assert user.acl_whoami() == "one"
        finally:
            client.acl_deluser("one")


def test_lines_stand_in_an_aclfile(
    start_server: object, tmp_path: Path, capsys: pytest.CaptureFixture[str], redis_server: RedisServer
) -> None:
    lines = [acl(role, "--no-password", capsys=capsys)[0] for role in Role]
    (tmp_path / "users.acl").write_text("".join(lines) + "user default on nopass ~* &* +@all\n")
    server = start_server(options=["--aclfile", str(tmp_path / "users.acl")])  # type: ignore[operator]
    with server.client() as client:
        assert {f"busq-{role}" for role in Role} <= set(client.acl_users())
    server.close()


def test_without_a_server_nothing_is_named_that_the_oldest_one_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    line, told = acl("producer", "--no-password", capsys=capsys)
    assert "client|setinfo" not in line
    assert "left out" in told


def test_without_a_password_nobody_is_let_in(capsys: pytest.CaptureFixture[str]) -> None:
    line, told = acl("producer", capsys=capsys)
    assert "nopass" not in line
    assert "#" not in line
    assert "cannot log in" in told


def test_a_document_holds_the_rule_word_by_word(password_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = acl(
        "producer", "canceller", "--password-file", password_file, "--namespace", "shop", "-o", "json", capsys=capsys
    )
    told = json.loads(out)
    assert (told["roles"], told["user"], told["namespace"]) == (
        ["producer", "canceller"],
        "busq-producer-canceller",
        "shop",
    )
    assert told["rules"][0] == "#" + hashlib.sha256(PASSWORD.encode()).hexdigest()
    assert all(word in told["line"] for word in told["rules"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nobody"], "producer"),
        (["worker", "--user", "two words"], "--user"),
        (["worker", "--password-file", "/nowhere/at/all"], "cannot be read"),
        (["worker", "--password-file", "/dev/null"], "one line"),
        (["worker", "--password-file", "/dev/null", "--no-password"], "exclude"),
    ],
)
def test_what_will_not_do_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in acl(*words, capsys=capsys, code=exits.USAGE)[1]
