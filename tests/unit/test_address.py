"""URLs and TLS settings: what each form means, what is wrong with others, and what of them may be shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from busq.config import Settings
from busq.errors import ConfigError
from busq.store.address import Address, Shape, read_address, redact


def _read(url: str, **settings: Any) -> Address:
    return read_address(Settings.load({}, url=url, **settings))


@pytest.mark.parametrize(
    ("url", "nodes", "options"),
    [
        ("redis://", (("localhost", 6379),), {}),
        ("redis://h", (("h", 6379),), {}),
        ("redis://h:1/3", (("h", 1),), {"db": 3}),
        ("redis://h/0?db=4", (("h", 6379),), {"db": 4}),
        ("redis://[::1]:7/", (("::1", 7),), {}),
        ("redis://u:p%40ss@h", (("h", 6379),), {"username": "u", "password": "p@ss"}),
        ("redis://:p@h", (("h", 6379),), {"password": "p"}),
        ("redis://h?username=u&password=a%20b", (("h", 6379),), {"username": "u", "password": "a b"}),
        ("redis://h?client_name=me", (("h", 6379),), {"client_name": "me"}),
        ("unix:///run/redis.sock", (), {"path": "/run/redis.sock"}),
        ("unix://u:p@/run/a%20b?db=2", (), {"path": "/run/a b", "username": "u", "password": "p", "db": 2}),
    ],
)
def test_one_server(url: str, nodes: tuple[Any, ...], options: dict[str, Any]) -> None:
    address = _read(url)
    assert (address.shape, address.tls, address.nodes, address.options) == (Shape.SINGLE, False, nodes, options)


def test_sentinels_and_their_own_login() -> None:
    address = _read(
        "redis+sentinel://u:p@h1,h2:7,[::1]:8/jobs/2?sentinel_username=s", sentinel_password="q", sentinel_username="t"
    )
    assert (address.shape, address.service) == (Shape.SENTINEL, "jobs")
    assert address.nodes == (("h1", 26379), ("h2", 7), ("::1", 8))
    assert address.options == {"username": "u", "password": "p", "db": 2}
    assert address.sentinel_options == {"username": "s", "password": "q"}, "the URL wins"


def test_a_cluster() -> None:
    address = _read("redis+cluster://u:p@h1:7000,h2")
    assert (address.shape, address.tls) == (Shape.CLUSTER, False)
    assert address.nodes == (("h1", 7000), ("h2", 6379))
    assert address.options == {"username": "u", "password": "p"}


@pytest.mark.parametrize("url", ["rediss://h", "rediss+sentinel://h/s", "rediss+cluster://h"])
def test_tls_is_in_the_scheme_and_its_files_are_settings_or_options(url: str, tmp_path: Path) -> None:
    assert _read(url).tls
    assert "ssl_check_hostname" not in _read(url).options, (
        "redis-py checks certificate and host name unless told not to"
    )
    assert _read(f"{url}?ssl_cert_reqs=none").options == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    assert _read(f"{url}?ssl_check_hostname=no").options == {"ssl_check_hostname": False}
    with pytest.raises(ConfigError, match="tls_ca_file: '/no/such' cannot be read"):
        _read(url, tls_ca_file="/no/such")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for given in ({"url": url, "tls_ca_file": str(empty)}, {"url": f"{url}?ssl_ca_certs={empty}"}):
        with pytest.raises(ConfigError, match=r"tls_ca_file: .*empty.pem' holds no certificates"):
            read_address(Settings.load({}, **given))
    with pytest.raises(ConfigError, match=r"tls_cert_file: .* cannot be used"):
        _read(url, tls_cert_file=str(empty))
    with pytest.raises(ConfigError, match="without tls_cert_file"):
        _read(url, tls_key_file=str(empty))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:6379", "has no scheme; it takes redis://"),
        ("http://h", "has scheme 'http'; it takes redis://"),
        ("redis://h:port", "has port 'port'; it takes 1 to 65535"),
        ("redis://h:0", "has port '0'"),
        ("redis://h:99999", "has port '99999'"),
        ("redis://h/one", "names database 'one'; it takes a number"),
        ("redis://h1,h2", "names 2 hosts; for several write redis.sentinel://HOST,HOST/SERVICE or redis.cluster://"),
        ("redis://h?socket_timeout=9", "an option 'socket_timeout' that is not known; .*BUSQ_COMMAND_TIMEOUT_S"),
        ("redis://h?decode_responses=1", "an option 'decode_responses'"),
        ("redis://h?sentinel_password=x", "has a login for Sentinels; only redis.sentinel:// takes one"),
        ("redis://h?ssl_ca_certs=/x", "without TLS, but .* write rediss://"),
        ("redis+cluster://h?ssl_ca_certs=/x", r"write rediss\+cluster://"),
        ("rediss://h?ssl_cert_reqs=maybe", "odd ssl_cert_reqs; it takes required, optional or none"),
        ("rediss://h?ssl_check_hostname=maybe", "odd ssl_check_hostname; it takes true or false"),
        ("redis+sentinel://h1,h2", "names no service; it takes redis.sentinel://HOST,HOST/SERVICE"),
        ("redis+sentinel://h1,,h2/s", "an empty place where a host should be"),
        ("redis+sentinel:///s", "an empty place"),
        ("redis+sentinel://h/s/t", "names database 't'"),
        ("redis+cluster://h1,", "an empty place"),
        ("redis+cluster://h/1", "names database 1; a cluster has only 0; use BUSQ_NAMESPACE"),
        ("redis+cluster://h [1]", "where a host should be"),
        ("unix://h/run/x", "no path of a socket"),
        ("redis://u:p?ss@h", r"has a \? before its @; write characters like"),
    ],
)
def test_a_mistake_is_named_with_what_would_do(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _read(url)


def test_a_file_for_tls_with_a_url_without_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unset BUSQ_TLS_CA_FILE"):
        _read("redis://h", tls_ca_file=str(tmp_path))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://u:secret@h/0", "redis://u:***@h/0"),
        ("redis://:secret@h", "redis://:***@h"),
        (
            "rediss+sentinel://u:secret@h1:1,h2:2/s/0?sentinel_password=secret",
            "rediss+sentinel://u:***@h1:1,h2:2/s/0?***",
        ),
        ("redis+cluster://u:secret@h1:1,h2:2", "redis+cluster://u:***@h1:1,h2:2"),
        ("unix://u:secret@/run/x?password=secret", "unix://u:***@/run/x?***"),
        ("redis://u:sec/ret@h", "redis://u:***@h"),
        ("redis://u:sec#ret@h#secret", "redis://u:***@h"),
        ("redis://u:sec@ret@h", "redis://u:***@h"),
        ("redis://u:secret?secret@h", "redis://***"),
        ("redis://h?password=secret@secret", "redis://***"),
        ("u:secret@h", "(a malformed URL)"),
        ("redis://u:secret@[::1", "redis://u:***@[::1"),
    ],
)
def test_what_may_be_shown_holds_no_password(url: str, shown: str) -> None:
    assert redact(url) == shown
    assert "secret" not in shown


@pytest.mark.parametrize("url", ["redis://u:secret@h:x", "redis+sentinel://u:secret@h", "bad://u:secret@h?x=secret"])
def test_no_mistake_is_told_with_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as told:
        _read(url)
    assert "secret" not in str(told.value)
