"""
Which server is the primary, as Sentinels see it.

All Sentinels are asked at once and the first useful answer counts: one that is dead or frozen costs nothing then. A
primary that its Sentinel believes to be down is no answer. The thing to hold in mind: a Sentinel that is cut off from
the others names yesterday's primary, so a connection asks the server itself for its role before it is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis import exceptions as redis_errors

from busq import tasks
from busq.errors import ConfigError
from busq.store.address import Address, Node


class Primary:
    """Asks for the primary's address. `make_client(node)` gives a client for one Sentinel."""

    def __init__(self, address: Address, make_client: Callable[[Node], Any]) -> None:
        self._address = address
        self._sentinels = [(f"{host}:{port}", make_client((host, port))) for host, port in address.nodes]

    async def __call__(self) -> Node:
        """
        Host and port of the present primary.

        Raise redis-py's `ConnectionError` while there is none, and `ConfigError` when the Sentinels that answer do not
        know the service.
        """
        asked = {asyncio.create_task(self._ask(client)): name for name, client in self._sentinels}
        troubles: list[str] = []
        refused: Exception | None = None
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    return await answer
                except redis_errors.AuthenticationError as error:
                    refused = error
                    troubles.append(f"login refused: {error}")
                except (redis_errors.RedisError, OSError, ConfigError) as error:
                    refused = error if isinstance(error, ConfigError) else refused
                    troubles.append(str(error) or type(error).__name__)
        finally:
            await tasks.end(*asked)
        if isinstance(refused, ConfigError):
            raise refused
        what = f"no Sentinel names a primary of {self._address.service!r} ({'; '.join(dict.fromkeys(troubles))})"
        if refused is not None:
            raise redis_errors.AuthenticationError(
                f"{what}. The login at Sentinels is set by BUSQ_SENTINEL_USERNAME and BUSQ_SENTINEL_PASSWORD"
            )
        raise redis_errors.ConnectionError(what)

    async def aclose(self) -> None:
        for _, client in self._sentinels:
            await client.aclose()

    async def _ask(self, client: Any) -> Node:
        services = await client.sentinel_masters()
        state = services.get(self._address.service)
        if state is None:
            known = ", ".join(sorted(services)) or "none"
            raise ConfigError(
                f"url: the Sentinels of {self._address.place!r} know no service {self._address.service!r}; "
                f"they know: {known}"
            )
        if not state["is_master"] or state["is_sdown"] or state["is_odown"]:
            raise redis_errors.ConnectionError(f"its primary {state['ip']}:{state['port']} is down")
        return state["ip"], int(state["port"])
