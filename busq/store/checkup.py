"""
A server looked over for `busq doctor`: what it keeps, whom it lets in, what time it has, how fast it rings.

Every check answers with a finding and never raises: one that cannot be carried out says so and the others go on.
Whatever is written for a try is a key of its own under the bus's prefix, expires in a second and is deleted.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable

from redis import exceptions as redis_errors

from busq.config import Settings
from busq.errors import BusqError
from busq.protocol import keys as bus_keys
from busq.store import authority, fitness, watch
from busq.store.card import WIRE_VERSION
from busq.store.connection import Client, Connections, reaching
from busq.store.fitness import Finding, Grade, Info
from busq.store.listener import Listener
from busq.store.reader import Reader
from busq.store.store import Store

ROUNDS = 5
ECHO_LIMIT_S = 3.0
SKEW_S = 1.0
SLOW_MS = 50.0
ASK_A_READER = "Ask as a user of role reader or admin (`busq acl`)."

Check = Callable[[], Awaitable[list[Finding]]]


async def look_over(settings: Settings) -> list[Finding]:
    """
    Everything there is to say about the server, or each server of a cluster, and the bus on it.

    Raise `ConfigError` for a URL that is none.
    """
    connections = Connections(settings)
    try:
        reached = await _tried("server", lambda: _reached(connections))
        if fitness.worst(reached) is Grade.FAIL:
            return reached
        told = [(place, await _look_at(connections, settings, server)) for place, server in await connections.servers()]
        findings = [*reached, *fitness.gathered(told)]
        findings += await _tried("pubsub", lambda: _round_trip(connections, settings))
        findings += await _tried("bus", lambda: _bus(connections, settings))
        return findings
    finally:
        await connections.close()


async def _look_at(connections: Connections, settings: Settings, server: Client) -> list[Finding]:
    """What there is to say about one server."""
    info: Info = {}

    async def judged() -> list[Finding]:
        nonlocal info
        info = await fitness.read_info(connections, server) or {}
        told = fitness.judge(info, apart=connections.apart)
        return [*told, fitness.known_holes(fitness.server_of(info))] if info else told

    findings = await _tried("version", judged)
    findings += await _tried("persistence", lambda: _persistence(server, info))
    findings += await _tried("replication", lambda: _replication(server, info))
    findings += await _tried("acl", lambda: _acl(server, settings, info))
    findings += await _tried("clock", lambda: _clock(server))
    return findings


async def _tried(check: str, look: Check) -> list[Finding]:
    try:
        return await look()
    except (BusqError, redis_errors.RedisError, OSError, TimeoutError) as error:
        if isinstance(error, redis_errors.NoPermissionError) or isinstance(
            error.__cause__, redis_errors.NoPermissionError
        ):
            return [Finding(check=check, grade=Grade.SKIP, found="this user may not look at it", advice=ASK_A_READER)]
        return [Finding(check=check, grade=Grade.FAIL, found=str(error) or type(error).__name__)]


# The server --------------------------------------------------------------------------------------------------


async def _reached(connections: Connections) -> list[Finding]:
    took, slowest = 0.0, connections.place
    with reaching(connections.place):
        servers = await connections.servers()
        for place, server in servers:
            times = []
            await server.ping()
            for _ in range(ROUNDS):
                began = time.perf_counter()
                await server.ping()
                times.append((time.perf_counter() - began) * 1000)
            if statistics.median(times) > took:
                took, slowest = statistics.median(times), place
    found = f"{connections.place} answers in {took:.2f} ms"
    if connections.apart:
        found = f"{connections.place}: {len(servers)} nodes, the slowest, {slowest}, answers in {took:.2f} ms"
    if took > SLOW_MS:
        return [
            Finding(check="server", grade=Grade.WARN, found=found, advice="That is far away; run workers nearer to it.")
        ]
    return [Finding(check="server", grade=Grade.OK, found=found)]


async def _setting(server: Client, name: str) -> str | None:
    """One line of the server's configuration; None where it is closed, as on managed servers."""
    try:
        answer = await server.config_get(name)
    except redis_errors.ResponseError:
        return None
    value = answer.get(name)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


async def _persistence(server: Client, info: Info) -> list[Finding]:
    if "aof_enabled" not in info:
        return [Finding(check="persistence", grade=Grade.SKIP, found="the server does not tell what it keeps")]
    if "err" in (info.get("rdb_last_bgsave_status"), info.get("aof_last_write_status")):
        return [
            Finding(
                check="persistence",
                grade=Grade.FAIL,
                found="the last save to disk failed; the server refuses writes, or soon will",
                advice="Look at the disk and at the server's log.",
            )
        ]
    if str(info["aof_enabled"]) == "1":
        fsync = await _setting(server, "appendfsync")
        # While an fsync lasts, Redis puts off the writes that follow, for two seconds at most.
        loses = {"always": "a crash loses nothing", "everysec": "a crash loses two seconds at most"}.get(
            fsync or "", ""
        )
        found = f"AOF, appendfsync {fsync}" if fsync else "AOF"
        if fsync == "no":
            return [
                Finding(
                    check="persistence",
                    grade=Grade.WARN,
                    found=f"{found}: a crash of the machine loses what the system had not written yet",
                    advice="Set appendfsync everysec.",
                )
            ]
        return [Finding(check="persistence", grade=Grade.OK, found=f"{found}: {loses}" if loses else found)]
    saves = await _setting(server, "save")
    if saves == "" or (saves is None and not info.get("rdb_saves")):
        return [
            Finding(
                check="persistence",
                grade=Grade.WARN,
                found="neither AOF nor RDB: a restart of the server loses every job",
                advice="Set appendonly yes.",
            )
        ]
    return [
        Finding(
            check="persistence",
            grade=Grade.WARN,
            found="RDB only: a crash loses what came after the last snapshot"
            + (f" (save {saves})" if saves is not None else ""),
            advice="Set appendonly yes.",
        )
    ]


async def _replication(server: Client, info: Info) -> list[Finding]:
    if "connected_slaves" not in info:
        return [Finding(check="replication", grade=Grade.SKIP, found="the server does not tell of its replicas")]
    replicas = int(info["connected_slaves"])
    if replicas == 0:
        return [Finding(check="replication", grade=Grade.OK, found="no replicas")]
    least = await _setting(server, "min-replicas-to-write")
    if least not in (None, "0") or "min_slaves_good_slaves" in info:
        return [
            Finding(check="replication", grade=Grade.OK, found=f"{replicas} replicas, min-replicas-to-write {least}")
        ]
    return [
        Finding(
            check="replication",
            grade=Grade.WARN,
            found=f"{replicas} replicas, and writes are taken without any of them: a failover can lose the newest",
            advice="Set min-replicas-to-write 1 and min-replicas-max-lag 2.",
        )
    ]


async def _acl(server: Client, settings: Settings, info: Info) -> list[Finding]:
    found = authority.judge(await authority.ask(server, settings.namespace))
    return [found, *await authority.of_default(server, info)]


async def _clock(server: Client) -> list[Finding]:
    before = time.time()
    seconds, micros = await server.time()
    after = time.time()
    ahead = int(seconds) + int(micros) / 1e6 - (before + after) / 2
    found = f"the server's clock is {abs(ahead):.3f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if abs(ahead) > SKEW_S + (after - before):
        return [
            Finding(
                check="clock",
                grade=Grade.WARN,
                found=found,
                advice="busq goes by the server's clock, so jobs are right; log lines of this machine will not match.",
            )
        ]
    return [Finding(check="clock", grade=Grade.OK, found=found)]


async def _round_trip(connections: Connections, settings: Settings) -> list[Finding]:
    """PUBLISH to the moment at which a subscriber of ours hears it, by the very listener that workers use."""
    mark = f"doctor-{secrets.token_hex(6)}".encode()
    (_, server), *_ = await connections.servers()
    for prefix in (bus_keys.notice_prefix(settings.namespace), bus_keys.done_prefix(settings.namespace)):
        if await authority.may_ring_and_hear(server, channel := prefix + mark):
            return await _echo(connections, channel)
    return [Finding(check="pubsub", grade=Grade.SKIP, found="this user may ring no channel that it may hear")]


async def _echo(connections: Connections, channel: bytes) -> list[Finding]:
    heard = asyncio.Event()
    listener = Listener(connections.listening, on_notice=lambda *_: heard.set(), on_confirmed=lambda channels: None)
    listening = asyncio.create_task(listener.run())
    listener.subscribe(channel)
    times = []
    try:
        async with asyncio.timeout(ECHO_LIMIT_S):
            await listener.confirmed(channel)
            for _ in range(ROUNDS):
                heard.clear()
                began = time.perf_counter()
                await connections.commands.publish(channel, b"doctor")
                await heard.wait()
                times.append((time.perf_counter() - began) * 1000)
    except TimeoutError:
        why = f": {listener.last_error}" if listener.last_error else ""
        return [
            Finding(
                check="pubsub",
                grade=Grade.FAIL,
                found=f"a message published on {channel.decode()} was not heard within {ECHO_LIMIT_S:g} s{why}",
                advice="Cancels still work, within a beat. Grant this user the channels, or look what stands between.",
            )
        ]
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    took = statistics.median(times)
    found = f"published to heard in {took:.2f} ms (median of {ROUNDS})"
    return [Finding(check="pubsub", grade=Grade.WARN if took > SLOW_MS else Grade.OK, found=found)]


# The bus -----------------------------------------------------------------------------------------------------


async def _bus(connections: Connections, settings: Settings) -> list[Finding]:
    with reaching(connections.place):
        version, shards = await connections.commands.hmget(bus_keys.meta(settings.namespace), "v", "shards")
    if version is None:
        found = f"there is no bus {settings.namespace!r} yet; the first to use it makes one"
        return [Finding(check="bus", grade=Grade.OK, found=f"{found} with {settings.shards or 1} shard(s)")]
    store = Store(settings, by="doctor")
    try:
        await store.open()
        found = f"bus {settings.namespace!r}, version {version.decode()} (this busq: {WIRE_VERSION}), "
        findings = [Finding(check="bus", grade=Grade.OK, found=f"{found}{shards.decode()} shard(s)")]
        return [*findings, *await _overdue(store), *await _roster(store)]
    finally:
        await store.close()


async def _overdue(store: Store) -> list[Finding]:
    late = 0
    for shard in range(store.shards):
        latest = await watch.server_now_ms(store, shard) - store.settings.watchdog_interval_s * 1000
        late += await store.redis.zcount(store.keys(shard).deadlines, "-inf", latest)
    if late:
        return [
            Finding(
                check="cancels",
                grade=Grade.WARN,
                found=f"{late} cancelled job(s) are past their deadline and not finalized",
                advice="Start a watchdog (`busq watchdog`), or look why none gets through.",
            )
        ]
    return [Finding(check="cancels", grade=Grade.OK, found="none is overdue")]


async def _roster(store: Store) -> list[Finding]:
    now_ms = await watch.server_now_ms(store)
    alive = [member for member in await Reader(store).members() if member.lease_ms > now_ms]
    watchdogs = sum(1 for member in alive if member.card and member.card.role == "watchdog")
    workers = len(alive) - watchdogs
    return [
        Finding(check="workers", grade=Grade.OK, found=f"{workers} alive")
        if workers
        else Finding(
            check="workers", grade=Grade.WARN, found="none is alive: jobs wait", advice="Start one: `busq worker APP`."
        ),
        Finding(check="watchdogs", grade=Grade.OK, found=f"{watchdogs} alive")
        if watchdogs
        else Finding(
            check="watchdogs",
            grade=Grade.WARN,
            found="none is alive: a cancel that is ignored is not finalized, and jobs of dead workers stay with them",
            advice="Start one beside each worker: `busq watchdog`.",
        ),
    ]
