"""
Where the bus is: the URL and the TLS settings, taken apart and checked before anything connects.

    redis://[user:password@]host[:6379][/db]                            one server
    unix://[user:password@]/path/to/socket[?db=0]                       one server, on this machine
    redis+sentinel://[user:password@]host[:26379],…/SERVICE[/db]        the primary that Sentinels name
    redis+cluster://[user:password@]host[:6379],…                       a cluster; any of its nodes will do

With `rediss` in front every connection is TLS. The thing to hold in mind: a URL holds secrets, so whatever goes into
a message goes through `redact` first.
"""

from __future__ import annotations

import os
import re
import ssl
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from busq.config import Settings
from busq.errors import ConfigError

FORMS = "redis://, unix://, redis+sentinel:// or redis+cluster://, or rediss in front of any but unix for TLS"

Node = tuple[str, int]
"""Host and port."""


class Shape(StrEnum):
    """How many servers there are behind an address, and who says which of them to talk to."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """
    An address that can be connected to.

    `options` are what redis-py's connections take for data, `sentinel_options` those for Sentinels; both without host
    and port. `nodes` is empty for a socket, whose `path` is among the options. `place` may be shown to anyone.
    """

    shape: Shape
    tls: bool
    nodes: tuple[Node, ...]
    service: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]
    place: str


_SCHEMES = {
    "redis": (Shape.SINGLE, False),
    "rediss": (Shape.SINGLE, True),
    "unix": (Shape.SINGLE, False),
    "redis+sentinel": (Shape.SENTINEL, False),
    "rediss+sentinel": (Shape.SENTINEL, True),
    "redis+cluster": (Shape.CLUSTER, False),
    "rediss+cluster": (Shape.CLUSTER, True),
}
_PORTS = {Shape.SINGLE: 6379, Shape.SENTINEL: 26379, Shape.CLUSTER: 6379}

_TLS_TEXT = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_ciphers")
_TLS = (*_TLS_TEXT, "ssl_cert_reqs", "ssl_check_hostname")
_QUERY = ("db", "username", "password", "client_name", "sentinel_username", "sentinel_password", *_TLS)


def require_url(settings: Settings) -> str:
    """The URL to talk to; `ConfigError` with what to do when there is none or it cannot be one."""
    read_address(settings)
    return settings.url or ""


def read_address(settings: Settings) -> Address:
    """Where these settings lead. Raise `ConfigError` that says what would do."""
    if not settings.url:
        raise ConfigError(
            "no Redis URL: set BUSQ_URL=redis://host:6379/0 or pass one, busq.Bus('redis://…'). "
            "For a first try without a server, `busq dev APP` or `busq demo` start one of their own."
        )
    return _Reading(settings, settings.url).address()


def redact(url: str) -> str:
    """The URL without its password, and without anything in its query, for people's eyes."""
    scheme, there, rest = url.partition("://")
    if not there or not re.fullmatch(r"[A-Za-z0-9+.-]+", scheme):
        return "(a malformed URL)"
    before, question, after = rest.partition("?")
    if "@" in after:
        return f"{scheme}://***"  # a password with a question mark, or a query with an @: it cannot be told which
    login, at, place = before.rpartition("@")
    user = f"{login.partition(':')[0]}:***@" if at else ""
    return f"{scheme}://{user}{place.partition('#')[0]}{'?***' if question else ''}"


class _Reading:
    """One URL on its way to an address. Whatever is wrong with it raises `ConfigError` with the redacted URL."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings = settings
        self._place = redact(url)
        self._scheme, there, rest = url.partition("://")
        if not there or self._scheme not in _SCHEMES:
            raise self._wrong(f"has scheme {self._scheme!r}" if there else "has no scheme", f"it takes {FORMS}")
        self._shape, self._tls = _SCHEMES[self._scheme]
        before, _, query = rest.partition("?")
        if "@" in query and "@" not in before:
            raise self._wrong(
                "has a ? before its @", "write characters like ? / @ : # in a password as %3F %2F %40 %3A %23"
            )
        login, at, place = before.rpartition("@")
        self._login = login if at else None
        self._hosts, _, self._path = place.partition("/")
        self._query = self._read_query(query)

    def _wrong(self, what: str, would_do: str) -> ConfigError:
        return ConfigError(f"url: {self._place!r} {what}; {would_do}")

    def address(self) -> Address:
        options = {**self._credentials(), **self._tls_options()}
        if "client_name" in self._query:
            options["client_name"] = self._query["client_name"]
        sentinel_options: dict[str, Any] = {}
        nodes: tuple[Node, ...] = ()
        service = ""
        database = self._path
        if self._scheme == "unix":
            options["path"], database = self._socket(), ""
        else:
            nodes = tuple(self._node(host) for host in self._hosts.split(","))
        if self._shape is Shape.SENTINEL:
            service, database = self._service()
            sentinel_options = {**self._sentinel_credentials(), **self._tls_options()}
        elif "sentinel_username" in self._query or "sentinel_password" in self._query:
            raise self._wrong("has a login for Sentinels", "only redis+sentinel:// takes one")
        if len(nodes) > 1 and self._shape is Shape.SINGLE:
            raise self._wrong(
                f"names {len(nodes)} hosts",
                f"for several write {self._scheme}+sentinel://HOST,HOST/SERVICE or {self._scheme}+cluster://HOST,HOST",
            )
        if number := self._database(database):
            options["db"] = number
        return Address(
            shape=self._shape,
            tls=self._tls,
            nodes=nodes,
            service=service,
            options=options,
            sentinel_options=sentinel_options,
            place=self._place,
        )

    # The parts -----------------------------------------------------------------------------------------

    def _read_query(self, query: str) -> dict[str, str]:
        given = dict(parse_qsl(query, keep_blank_values=True))
        for name in given:
            if name not in _QUERY:
                raise self._wrong(
                    f"has an option {name!r} that is not known",
                    f"it takes {', '.join(_QUERY)}; times are set by BUSQ_COMMAND_TIMEOUT_S and BUSQ_CONNECT_TIMEOUT_S",
                )
        return given

    def _credentials(self) -> dict[str, str]:
        user, _, password = (self._login or "").partition(":")
        found = {
            "username": unquote(user) or self._query.get("username", ""),
            "password": unquote(password) or self._query.get("password", ""),
        }
        return {name: value for name, value in found.items() if value}

    def _sentinel_credentials(self) -> dict[str, str]:
        found = {
            "username": self._query.get("sentinel_username") or self._settings.sentinel_username or "",
            "password": self._query.get("sentinel_password") or self._settings.sentinel_password or "",
        }
        return {name: value for name, value in found.items() if value}

    def _node(self, text: str) -> Node:
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/\s]*)(?::(.*))?", text)
        if found is None:
            raise self._wrong(f"has {text!r} where a host should be", "it takes HOST or HOST:PORT, [ADDRESS] for IPv6")
        host, port = unquote(found[1].strip("[]")), found[2]
        if not host:
            if self._shape is Shape.SINGLE and self._hosts in ("", f":{port}"):
                host = "localhost"
            else:
                raise self._wrong("has an empty place where a host should be", "it takes HOST:PORT,HOST:PORT")
        if port is None:
            return host, _PORTS[self._shape]
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise self._wrong(f"has port {port!r}", "it takes 1 to 65535")
        return host, int(port)

    def _socket(self) -> str:
        if self._hosts or not self._path:
            raise self._wrong("has no path of a socket", "it takes unix:///path/to/socket")
        return "/" + unquote(self._path)

    def _service(self) -> tuple[str, str]:
        service, _, database = self._path.partition("/")
        if not service:
            raise self._wrong(
                "names no service", f"it takes {self._scheme}://HOST,HOST/SERVICE, as in `sentinel monitor SERVICE …`"
            )
        return unquote(service), database

    def _database(self, path: str) -> int:
        text = self._query.get("db", "") or path.strip("/")
        if not re.fullmatch(r"[0-9]{0,5}", text):
            raise self._wrong(f"names database {text!r}", "it takes a number")
        if self._shape is Shape.CLUSTER and text not in ("", "0"):
            raise self._wrong(f"names database {text}", "a cluster has only 0; use BUSQ_NAMESPACE to keep things apart")
        return int(text or 0)

    # TLS -----------------------------------------------------------------------------------------------

    def _tls_options(self) -> dict[str, Any]:
        given: dict[str, Any] = {
            "ssl_ca_certs": self._settings.tls_ca_file,
            "ssl_certfile": self._settings.tls_cert_file,
            "ssl_keyfile": self._settings.tls_key_file,
        }
        given |= {name: value for name, value in self._query.items() if name in _TLS}
        options = {name: value for name, value in given.items() if value}
        if not options:
            return {}
        if not self._tls:
            # Going on without TLS would send in clear what somebody wanted hidden.
            raise self._wrong(
                "is a URL without TLS, but a file or an option for TLS is set",
                f"write rediss{self._scheme.removeprefix('redis')}://, or unset BUSQ_TLS_CA_FILE, BUSQ_TLS_CERT_FILE, "
                "BUSQ_TLS_KEY_FILE and ssl_… in the URL",
            )
        if "ssl_check_hostname" in options:
            options["ssl_check_hostname"] = self._switch("ssl_check_hostname", options["ssl_check_hostname"])
        if options.get("ssl_cert_reqs", "required") not in ("required", "optional", "none"):
            raise self._wrong("has an odd ssl_cert_reqs", "it takes required, optional or none")
        if options.get("ssl_cert_reqs") == "none":
            options["ssl_check_hostname"] = False
        _try_files(options)
        return options

    def _switch(self, name: str, value: str) -> bool:
        if value.lower() not in ("true", "yes", "1", "false", "no", "0"):
            raise self._wrong(f"has an odd {name}", "it takes true or false")
        return value.lower() in ("true", "yes", "1")


def _try_files(options: dict[str, Any]) -> None:
    """Read the files once now, so that what is wrong with them is told at the start and by name."""
    ca, certificate, key = (options.get(f"ssl_{name}") for name in ("ca_certs", "certfile", "keyfile"))
    for setting, path in (("tls_ca_file", ca), ("tls_cert_file", certificate), ("tls_key_file", key)):
        if path and not os.access(path, os.R_OK):
            raise ConfigError(f"{setting}: {path!r} cannot be read; it takes the path of a PEM file")
    if key and not certificate:
        raise ConfigError(f"tls_key_file: {key!r} was given without tls_cert_file, the certificate that it belongs to")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca:
            context.load_verify_locations(cafile=ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"tls_ca_file: {ca!r} holds no certificates in PEM form ({error})") from None
    try:
        if certificate:
            context.load_cert_chain(certificate, key, options.get("ssl_password", ""))
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"tls_cert_file: {certificate!r}{f' with tls_key_file {key!r}' if key else ''} cannot be used: {error}. "
            "Both are PEM files, and the key belongs to the certificate"
        ) from None
