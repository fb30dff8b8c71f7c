"""
What can go wrong with TLS, told apart from a connection that does not come about.

A certificate that is refused now is refused a moment later as well: such trouble is no connection error, which would be
tried again at once, and its words name the cause.
"""

from __future__ import annotations

import ssl

from redis import exceptions as redis_errors


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
