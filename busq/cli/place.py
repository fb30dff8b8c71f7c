"""
Which bus a command talks to: the options that every command has, and the ways to open what they name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from busq.redaction import guard, guard_secret

if TYPE_CHECKING:
    from busq.client.bus import Bus
    from busq.config import Settings
    from busq.store.reader import Reader
    from busq.store.store import Store

NO_URL = (
    "no Redis URL: set BUSQ_URL=redis://host:6379/0 or give --url. "
    "For a first try without a server, `busq dev APP` or `busq demo` start one of their own."
)

Output = Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"])]
Flag = Annotated[bool, Parameter(negative="")]
Wait = Annotated[float | None, Parameter(validator=Number(gte=0))]  # refused before anything is sent


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Place:
    """Which bus."""

    url: str | None = None
    """redis://, unix://, redis+sentinel:// or redis+cluster://, with rediss for TLS; left out: BUSQ_URL."""

    namespace: str | None = None
    """The bus's name in Redis; left out: BUSQ_NAMESPACE, else busq."""

    def settings(self, **given: Any) -> Settings:
        """Settings from these options and the environment. Raise `ConfigError`, also when there is no URL."""
        from busq.errors import ConfigError

        settings = self.settings_without_url(**given)
        if not settings.url:
            raise ConfigError(NO_URL)
        return settings

    def settings_without_url(self, **given: Any) -> Settings:
        """The same for a command that can do without a server: `url` may be None."""
        from busq.config import Settings

        guard(self.url)
        settings = Settings.load(url=self.url, namespace=self.namespace, **given)
        guard(settings.url)
        guard_secret(settings.sentinel_password)
        return settings


HERE = Place()


@asynccontextmanager
async def opened_bus(place: Place) -> AsyncIterator[Bus]:
    """The bus as a client, closed at the end."""
    from busq.client.bus import Bus

    settings = place.settings()
    async with Bus(settings.url, namespace=settings.namespace) as bus:
        yield bus


@asynccontextmanager
async def opened_reader(place: Place) -> AsyncIterator[tuple[Store, Reader]]:
    """The bus to be looked at, closed at the end."""
    from busq.store.reader import Reader
    from busq.store.store import Store

    store = Store(place.settings(), by="cli")
    try:
        await store.open()
        yield store, Reader(store)
    finally:
        await store.close()
