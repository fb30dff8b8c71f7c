"""
What can go wrong with TLS: with its files, before anything connects, and with the other side.

A certificate that is refused now is refused a moment later as well: such trouble is no connection error, which would be
tried again at once, and its words name the cause.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any

from redis import exceptions as redis_errors

from busq.errors import ConfigError


class TlsRefused(redis_errors.RedisError):
    """The two sides cannot agree on TLS. Not one of redis-py's connection errors: trying again is of no use."""


def tls_trouble(error: BaseException | None) -> ssl.SSLError | None:
    """What TLS found wrong, if that is behind an error; a handshake that was cut off is none."""
    while error is not None:
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return error
        error = error.__cause__ or error.__context__
    return None


def explain(trouble: ssl.SSLError) -> str:
    """In words for people, and what would do; it stands behind "cannot be spoken to by TLS"."""
    if isinstance(trouble, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted: {trouble.verify_message}. Give the authority that signed it by "
            "BUSQ_TLS_CA_FILE, and use a host name that stands in it"
        )
    what = (trouble.reason or str(trouble)).replace("_", " ").lower()
    if trouble.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return f"it does not speak TLS on this port ({what}); write redis in place of rediss, or use its TLS port"
    if "CERTIFICATE" in (trouble.reason or ""):
        return f"it does not accept our certificate ({what}); set BUSQ_TLS_CERT_FILE and BUSQ_TLS_KEY_FILE"
    return f"the two sides cannot agree on TLS: {what}"


def try_files(options: Mapping[str, Any]) -> None:
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
