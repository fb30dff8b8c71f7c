"""
The listener on a real server: what it hears, what it asks of the server, and that no fault makes it deaf.

A fault test writes cancels down in a set and announces each on its own channel, as busq does, while the fault
happens. The owner re-reads the set on every confirmation. Whatever is in the set in the end must have been heard.
"""

from __future__ import annotations

import asyncio
import errno
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from busq.store.listener import Listener
from busq.store.subscriptions import CHUNK, Subscriptions
from tests.runtime.bench import BUSY_S
from tests.servers import RedisServer

PATIENCE_S = 20.0
WARY: dict[str, Any] = {"dead_after_s": 0.5}
"""For faults that shall be noticed; elsewhere a machine that stalls must not look like one."""
PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])
KEEPS_ITS_DATA = pytest.mark.parametrize("own_server", [{"aof": True}], indirect=True)
EVERY_BYTE = bytes(range(256))


class Ear:
    """A listener with an owner that remembers what it was told, and the connections that were made for it."""

    def __init__(self, url: str, protocol: int = 3, **settings: Any) -> None:
        self.url = url
        self.protocol = protocol
        self.connections: list[Any] = []
        self.notices: list[tuple[bytes, bytes]] = []
        self.confirmations: list[frozenset[bytes]] = []
        self._moved = asyncio.Event()
        settings = {"ping_every_s": 0.1, "dead_after_s": 10.0} | settings
        self.listener = Listener(
            self._make_client, on_notice=self._on_notice, on_confirmed=self._on_confirmed, **settings
        )

    def client(self) -> redis.asyncio.Redis:
        return redis.asyncio.Redis.from_url(
            self.url, protocol=self.protocol, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
        )

    def _make_client(self) -> redis.asyncio.Redis:
        client = self.client()
        make = client.connection_pool.make_connection

        def make_and_note() -> Any:
            self.connections.append(make())
            return self.connections[-1]

        client.connection_pool.make_connection = make_and_note  # type: ignore[method-assign]
        return client

    def _on_notice(self, channel: bytes, message: bytes) -> None:
        self.notices.append((channel, message))
        self._moved.set()

    def _on_confirmed(self, channels: frozenset[bytes]) -> None:
        self.confirmations.append(channels)
        self._moved.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds()`; look again at every callback, and on a short beat for what has no callback."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self._moved.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.005):
                        await self._moved.wait()

    async def confirmed(self, *channels: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            for channel in channels:
                await self.listener.confirmed(channel)


@asynccontextmanager
async def listening(ear: Ear) -> AsyncIterator[redis.asyncio.Redis]:
    """Run the ear's listener; give a client to talk to the same server with."""
    client = ear.client()
    running = asyncio.create_task(ear.listener.run())
    try:
        yield client
        assert not running.done(), running
    finally:
        running.cancel()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(running, return_exceptions=True)
        await client.aclose()


async def calls(client: redis.asyncio.Redis, command: str) -> int:
    stats = await client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def asked_until(ask: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool]) -> Any:
    """Ask the server until the answer is as it should be; give that answer."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds(answer := await ask()):
            pass
    return answer


# What is heard -------------------------------------------------------------------------------------------


@PROTOCOLS
async def test_a_notice_reaches_the_owner_with_every_byte_as_it_was(redis_url: str, protocol: int) -> None:
    ear = Ear(redis_url, protocol)
    messages = [b"", EVERY_BYTE, b"\r\n$-1\r\n*0\r\n", "cancel ✓".encode(), b"\xff\xfe" * 100_000]
    channels = [b"cancel:1", b"", EVERY_BYTE, b"a b\r\nc", b"cancel:*"]
    async with listening(ear) as client:
        ear.listener.subscribe(*channels)
        await ear.confirmed(*channels)
        for channel in channels:
            for message in messages:
                await client.publish(channel, message)
        wanted = [(channel, message) for channel in channels for message in messages]
        await ear.until(lambda: len(ear.notices) >= len(wanted))
    assert ear.notices == wanted


@PROTOCOLS
async def test_what_is_published_right_after_the_confirmation_is_heard(redis_url: str, protocol: int) -> None:
    ear = Ear(redis_url, protocol)
    async with listening(ear) as client:
        for number in range(200):
            channel = b"cancel:%d" % number
            ear.listener.subscribe(channel)
            await ear.confirmed(channel)
            await client.publish(channel, b"")
            if number % 2:
                ear.listener.unsubscribe(channel)
        # Half of the channels may have been dropped before their notice came; the other half must all be there.
        kept = {b"cancel:%d" % number for number in range(0, 200, 2)}
        await ear.until(lambda: kept <= {channel for channel, _ in ear.notices})


async def test_each_subscribe_is_answered_by_a_confirmation_of_its_own(redis_url: str) -> None:
    ear = Ear(redis_url)
    async with listening(ear):
        ear.listener.subscribe(b"a")
        await ear.until(lambda: frozenset({b"a"}) in ear.confirmations)
        ear.confirmations.clear()
        ear.listener.subscribe(b"a")  # a second one that waits for the same job has to read the record too
        await ear.until(lambda: frozenset({b"a"}) in ear.confirmations)


async def test_a_channel_is_heard_until_the_last_who_wanted_it_is_gone(redis_url: str) -> None:
    ear = Ear(redis_url, always_connected=True)
    async with listening(ear) as client:
        ear.listener.subscribe(b"a")
        ear.listener.subscribe(b"a", b"marker")
        await ear.confirmed(b"a", b"marker")
        ear.listener.unsubscribe(b"a")
        await client.publish(b"a", b"one left")
        await ear.until(lambda: (b"a", b"one left") in ear.notices)
        ear.listener.unsubscribe(b"a")
        ear.listener.unsubscribe(b"a", b"never wanted")  # once too often is harmless
        await client.publish(b"a", b"nobody left")
        await client.publish(b"marker", b"")
        await ear.until(lambda: (b"marker", b"") in ear.notices)
        assert (b"a", b"nobody left") not in ear.notices
        await asked_until(lambda: client.pubsub_numsub(b"a"), lambda found: found[0][1] == 0)


async def test_a_late_confirmation_of_a_dropped_subscription_is_not_taken_for_the_present_one() -> None:
    book = Subscriptions()
    book.start()
    sent = []
    for step in (book.want, book.forget, book.want):
        step(b"a")
        sent += [command for command, _ in book.commands()]
    assert sent == [b"SUBSCRIBE", b"UNSUBSCRIBE", b"SUBSCRIBE"]
    assert not book.answered(b"a", subscribed=True)
    assert not book.answered(b"a", subscribed=False)
    assert not book.confirmed
    assert book.answered(b"a", subscribed=True)
    assert book.news() == {b"a"}


async def test_a_channel_wanted_again_before_its_turn_to_leave_keeps_its_subscription() -> None:
    book, channels = Subscriptions(), {b"%d" % number for number in range(CHUNK + 3)}
    book.start()
    for step in (book.want, book.forget):
        for channel in channels:
            step(channel)
        if step == book.want:
            for _, named in book.commands():
                for channel in named:
                    book.answered(channel, subscribed=True)
    sending = book.commands()
    _, left = next(sending)
    for channel in channels - set(left):
        book.want(channel)  # whoever wants it now may rely on the confirmation that it already has
    assert list(sending) == []
    assert book.confirmed == channels - set(left) == set(book.wanted)


async def test_a_channel_wanted_again_while_commands_are_being_sent_is_not_left_out() -> None:
    """Every order of changes in the pauses between two chunks: what the server has in the end is what is wanted."""
    for seed in range(300):
        dice = random.Random(seed)
        channels = [b"%d" % number for number in range(CHUNK + 3)]
        book, at_server = Subscriptions(), set()
        book.start()

        def shake(dice: random.Random = dice, book: Subscriptions = book, channels: list[bytes] = channels) -> None:
            for channel in dice.sample(channels, 20) + channels[-3:]:
                dice.choice([book.want, book.forget])(channel)

        for channel in channels:
            book.want(channel)
        for shaken in range(4):
            for command, named in book.commands():
                (at_server.update if command == b"SUBSCRIBE" else at_server.difference_update)(named)
                for channel in named:
                    book.answered(channel, subscribed=command == b"SUBSCRIBE")
                if shaken < 3:
                    shake()
            assert book.confirmed <= at_server, f"seed {seed}"
        assert at_server == set(book.wanted) == book.confirmed, f"seed {seed}"


@PROTOCOLS
async def test_after_a_storm_of_changes_the_server_knows_exactly_what_is_wanted(redis_url: str, protocol: int) -> None:
    dice = random.Random(7)
    channels = [b"cancel:%d" % number for number in range(40)]
    counts = dict.fromkeys(channels, 0)
    ear = Ear(redis_url, protocol, always_connected=True)
    async with listening(ear) as client:
        await ear.until(lambda: ear.listener.healthy)
        for turn in range(2_000):
            channel = dice.choice(channels)
            if counts[channel] and dice.random() < 0.6:
                counts[channel] -= 1
                ear.listener.unsubscribe(channel)
            else:
                counts[channel] += 1
                ear.listener.subscribe(channel)
            if turn % 7 == 0:
                await asyncio.sleep(0)
        wanted = {channel for channel, count in counts.items() if count}
        assert wanted
        assert wanted != set(channels)
        await ear.confirmed(*wanted)
        await asked_until(client.pubsub_channels, lambda found: set(found) == wanted)


async def test_a_callback_that_raises_is_logged_and_the_listener_goes_on(redis_url: str) -> None:
    ear = Ear(redis_url)

    def stumble(channel: bytes, message: bytes) -> None:
        ear._on_notice(channel, message)
        raise ValueError(message)

    ear.listener._on_notice = stumble
    async with listening(ear) as client:
        ear.listener.subscribe(b"a")
        await ear.confirmed(b"a")
        for message in (b"\xff", b"second"):
            await client.publish(b"a", message)
        await ear.until(lambda: len(ear.notices) == 2)
        assert len(ear.connections) == 1


async def test_an_owner_that_could_not_take_a_confirmation_is_told_again(redis_url: str) -> None:
    ear = Ear(redis_url)
    told = []

    def stumble(channels: frozenset[bytes]) -> None:
        told.append(channels)
        if len(told) == 1:
            raise ConnectionError("the record could not be read")

    ear.listener._on_confirmed = stumble
    async with listening(ear):
        ear.listener.subscribe(b"a")
        await ear.until(lambda: len(told) == 2)
        assert told == [{b"a"}, {b"a"}]


# What it costs -------------------------------------------------------------------------------------------


async def test_many_subscriptions_of_one_turn_are_few_commands(own_server: RedisServer) -> None:
    ear = Ear(own_server.url, always_connected=True)
    channels = [b"cancel:%d" % number for number in range(2 * CHUNK + 1)]
    async with listening(ear) as client:
        await ear.until(lambda: ear.listener.healthy)
        for channel in channels:
            ear.listener.subscribe(channel)
        await ear.confirmed(*channels)
        assert await calls(client, "subscribe") == 3
        for channel in channels:
            ear.listener.unsubscribe(channel)
            ear.listener.subscribe(channel)
        await ear.confirmed(*channels)
        assert await calls(client, "subscribe") == 3
        assert await calls(client, "unsubscribe") == 0


async def test_an_idle_listener_sends_no_more_than_its_pings(own_server: RedisServer) -> None:
    ear = Ear(own_server.url, always_connected=True, ping_every_s=0.05)
    async with listening(ear) as client:
        await ear.until(lambda: ear.listener.healthy)
        since, before = time.monotonic(), await calls(client, "ping")
        sent = await asked_until(lambda: calls(client, "ping"), lambda now: now - before >= 10) - before
        assert sent <= (time.monotonic() - since) / 0.05 + 1


async def test_without_a_channel_there_is_no_connection(own_server: RedisServer) -> None:
    ear = Ear(own_server.url, linger_s=0.2)
    async with listening(ear) as client:
        for _ in range(5):
            await asyncio.sleep(0)
        assert ear.connections == []
        assert ear.listener.healthy
        for round_ in (1, 2):
            ear.listener.subscribe(b"a")
            await ear.confirmed(b"a")
            await ear.until(lambda: ear.listener.connected_since is not None)
            ear.listener.unsubscribe(b"a")
            await ear.until(lambda: ear.listener.connected_since is None)
            assert len(ear.connections) == round_
            await asked_until(lambda: client.client_list(_type="pubsub"), lambda found: not found)
        assert ear.listener.healthy
        assert ear.listener.last_error is None


async def test_connections_that_were_replaced_do_not_stay_open(own_server: RedisServer) -> None:
    ear = Ear(own_server.url, always_connected=True)
    async with listening(ear) as client:
        for number in range(10):
            await ear.until(lambda number=number: ear.listener.healthy and ear.listener.reconnects == number)
            ear.connections[-1]._reader.set_exception(OSError(errno.ECONNRESET, "reset"))
        await ear.until(lambda: ear.listener.healthy and ear.listener.reconnects == 10)
        assert len(await client.client_list()) == 2
    assert all(not connection.is_connected for connection in ear.connections)


# No fault makes it deaf ----------------------------------------------------------------------------------


async def killed_by_the_server(ear: Ear, server: RedisServer) -> None:
    async with ear.client() as client:
        await client.client_kill_filter(_type="pubsub")


async def frozen(ear: Ear, server: RedisServer) -> None:
    server.pause()
    try:
        await ear.until(lambda: not ear.listener.healthy and ear.listener.last_error is not None)
    finally:
        server.resume()


async def killed_and_restarted(ear: Ear, server: RedisServer) -> None:
    server.kill()
    await ear.until(lambda: ear.listener._failures >= 2)
    await asyncio.to_thread(server.start)


async def timed_out_by_the_kernel(ear: Ear, server: RedisServer) -> None:
    # What the transport does when keepalive gives up. Stock redis-py takes it for a timeout of the caller's.
    ear.connections[-1]._reader.set_exception(OSError(errno.ETIMEDOUT, "Connection timed out"))


async def flooded_with_forged_messages(ear: Ear, server: RedisServer) -> None:
    """So much that the server drops us as too slow, or not: both are survived."""
    async with ear.client() as client:
        for message in (EVERY_BYTE, b"\xff" * 9_000_000, b"", b"\r\n"):
            await client.publish(b"cancel:0", message)


FAULTS = [killed_by_the_server, frozen, killed_and_restarted, timed_out_by_the_kernel, flooded_with_forged_messages]


@PROTOCOLS
@KEEPS_ITS_DATA
@pytest.mark.parametrize("fault", FAULTS)
async def test_no_cancel_is_missed_when_the_connection_is(
    own_server: RedisServer, protocol: int, fault: Callable[[Ear, RedisServer], Awaitable[None]]
) -> None:
    ear = Ear(own_server.url, protocol, **WARY)
    known: set[bytes] = set()
    readers: set[asyncio.Task[None]] = set()
    channels = [b"cancel:%d" % number for number in range(300)]
    written = 0

    async def read_the_record() -> None:
        while True:
            with suppress(RedisError, OSError):
                known.update(await client.smembers("cancelled"))
                return
            await asyncio.sleep(0.01)

    def on_confirmed(_: frozenset[bytes]) -> None:
        readers.add(asyncio.create_task(read_the_record()))

    async def cancel_all() -> None:
        nonlocal written
        for channel in channels:
            while True:
                with suppress(RedisError, OSError):
                    await client.sadd("cancelled", channel)
                    break
                await asyncio.sleep(0.01)
            with suppress(RedisError, OSError):
                await client.publish(channel, b"")  # never repeated: a notice is a hint
            written += 1
            await asyncio.sleep(0.001)

    ear.listener._on_confirmed = on_confirmed
    ear.listener._on_notice = lambda channel, _: known.add(channel)
    gaps = [(0.0, 0.0)]
    async with listening(ear) as client:
        ticking = asyncio.create_task(note_gaps(gaps))
        ear.listener.subscribe(*channels)
        await ear.confirmed(*channels)
        cancelling = asyncio.create_task(cancel_all())
        await ear.until(lambda: written >= 50)
        await fault(ear, own_server)
        async with asyncio.timeout(PATIENCE_S):
            await cancelling
        # Whatever was lost in the fault comes back with the new connection's confirmation, never by luck.
        await ear.until(lambda: known == set(channels))
        await ear.until(lambda: ear.listener.healthy)
        if fault is not flooded_with_forged_messages:
            assert ear.listener.reconnects >= 1
        ticking.cancel()
        await asyncio.gather(ticking, *readers, return_exceptions=True)
    passed, spent = (max(each) for each in zip(*gaps, strict=True))
    assert spent < 1.0, "the loop was kept busy"
    assert passed < 1.0 + BUSY_S, "the loop stood still"


async def note_gaps(gaps: list[tuple[float, float]]) -> None:
    """A heartbeat of the loop: note how long it ever stood still, and how long it was busy meanwhile."""
    while True:
        before, spent = time.monotonic(), time.thread_time()
        await asyncio.sleep(0.01)
        gaps.append((time.monotonic() - before, time.thread_time() - spent))


@PROTOCOLS
async def test_a_frozen_server_is_noticed_in_time_and_all_channels_come_back(
    own_server: RedisServer, protocol: int
) -> None:
    ear = Ear(own_server.url, protocol, ping_every_s=0.3, dead_after_s=1.0)
    async with listening(ear):
        ear.listener.subscribe(b"a", b"b")
        await ear.confirmed(b"a", b"b")
        own_server.pause()
        since = time.monotonic()
        await ear.until(lambda: not ear.listener.healthy)
        assert time.monotonic() - since < 1.0 + BUSY_S
        assert "nothing heard" in str(ear.listener.last_error) or ear.listener.last_error is None
        ear.listener.subscribe(b"c")  # wanted while nothing answers
        ear.listener.unsubscribe(b"b")
        await ear.until(lambda: ear.listener._failures >= 2)
        own_server.resume()
        ear.confirmations.clear()
        await ear.confirmed(b"a", b"c")
        await ear.until(lambda: ear.listener.healthy and bool(ear.confirmations))
        assert ear.confirmations[0] == {b"a", b"c"}


async def test_a_full_write_buffer_does_not_hide_a_frozen_server(own_server: RedisServer) -> None:
    ear = Ear(own_server.url, always_connected=True, dead_after_s=2.0)
    async with listening(ear):
        await ear.until(lambda: ear.listener.healthy)
        own_server.pause()
        long_names = [b"%d" % number + b"x" * 20_000 for number in range(1_000)]
        ear.listener.subscribe(*long_names)
        await ear.until(lambda: ear.listener.last_error is not None)
        own_server.resume()
        await ear.confirmed(*long_names)


async def test_a_server_that_is_not_there_yet_is_waited_for(own_server: RedisServer) -> None:
    own_server.kill()
    ear = Ear(own_server.url)
    ear.listener.subscribe(b"a")
    async with listening(ear):
        await ear.until(lambda: ear.listener._failures >= 3)
        assert not ear.listener.healthy
        assert ear.listener.silent_for_s is None
        await asyncio.to_thread(own_server.start)
        await ear.until(lambda: ear.confirmations == [{b"a"}])
        assert ear.listener.healthy
        assert ear.listener.reconnects == 0


async def test_a_server_frozen_before_the_first_word_is_waited_for(own_server: RedisServer) -> None:
    own_server.pause()
    ear = Ear(own_server.url, **WARY)
    ear.listener.subscribe(b"a")
    async with listening(ear):
        await ear.until(lambda: ear.listener._failures >= 2)
        own_server.resume()
        await ear.confirmed(b"a")


async def test_a_loop_that_was_held_up_does_not_blame_the_server(redis_url: str) -> None:
    ear = Ear(redis_url, dead_after_s=2.0)
    async with listening(ear):
        ear.listener.subscribe(b"a")
        await ear.confirmed(b"a")
        await ear.until(lambda: ear.listener.healthy)
        for _ in range(2):
            time.sleep(2.2)  # noqa: ASYNC251 - a handler that blocks the loop for longer than `dead_after_s`
            await ear.until(lambda: (ear.listener.silent_for_s or 0.0) < 0.2)
        assert ear.listener.healthy
        assert len(ear.connections) == 1
        assert ear.listener.last_error is None


async def test_a_refused_subscription_is_named_and_tried_again(own_server: RedisServer) -> None:
    with own_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "worker", "on", ">pw", "+@all", "~*", "resetchannels")
        url = own_server.url.replace("redis://", "redis://worker:pw@")
        ear = Ear(url, always_connected=True)
        ear.listener.subscribe(b"cancel:1")
        async with listening(ear):
            await ear.until(lambda: ear.listener._failures >= 2)
            assert "NoPermission" in str(ear.listener.last_error)
            assert not ear.listener.healthy
            admin.execute_command("ACL", "SETUSER", "worker", "&cancel:*")
            await ear.confirmed(b"cancel:1")


@pytest.mark.parametrize("turns", range(50))
async def test_a_listener_that_is_cancelled_ends_at_whatever_step_it_is(redis_url: str, turns: int) -> None:
    """Also in the very turn in which its connection fails."""
    ear = Ear(redis_url, always_connected=True)
    running = asyncio.create_task(ear.listener.run())
    if turns % 2:
        await ear.until(lambda: ear.listener.healthy)
        ear.connections[-1]._reader.set_exception(OSError(errno.ECONNRESET, "reset"))
    for _ in range(turns // 2):
        await asyncio.sleep(0)
    running.cancel()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait([running])
    assert running.cancelled()
    assert all(not connection.is_connected for connection in ear.connections)
