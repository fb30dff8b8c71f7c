"""A bench for those who work beside each other: a second watchdog, and workers that keep the streams that they read."""

from __future__ import annotations

from busq.store.store import Store
from busq.store.streams import Entry, Streams
from tests.store.bench import QUEUE, Bench


class Kennel(Bench):
    """`dogs` are the watchdogs by number; the first is the bench's own."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.dogs = {"1": self.dog, "2": Store(self.settings, by="second dog", clock=self.clock)}
        self.streams = {store.by: Streams(store, [QUEUE]) for store in (self.a, self.b)}

    async def __aenter__(self) -> Kennel:
        await super().__aenter__()
        await self.dogs["2"].open()
        for streams in self.streams.values():
            await streams.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.dogs["2"].close()
        await super().__aexit__(*error)

    async def read(self, by: Store | None = None, count: int = 1000, queue: str = QUEUE) -> list[Entry]:
        streams = self.streams[(by or self.a).by]
        return await streams.read(streams.places, each=count, block_ms=0)
