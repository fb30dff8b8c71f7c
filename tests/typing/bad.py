"""What type checkers shall refuse: each line with `# error: <codes>` and no other. See test_typing.py."""

from __future__ import annotations

import busq

bus = busq.Bus()


@bus.job
async def measured(path: str, precise: bool = False) -> int:
    return len(path)


@bus.job(retries=1)
def resized(width: int) -> list[int]:
    return [width]


async def uses() -> None:
    await measured.enqueue()  # error: call-arg
    await measured.enqueue(5)  # error: arg-type
    await measured.enqueue("a", presize=True)  # error: call-arg
    await measured.options(priority=3).enqueue("a")  # error: call-arg
    await measured.options(on_parent_cancel="stay").enqueue("a")  # error: arg-type
    await measured.options(key=5, supersede=True).enqueue("a")  # error: arg-type
    measured.spec(b"a")  # error: arg-type
    text: str = await (await measured.enqueue("a")).result()  # error: assignment
    await (await resized.enqueue("3")).result()  # error: arg-type
    resized.blocking.enqueue(width="3")  # error: arg-type
    (await bus.get("x")).state = busq.State.FAILED  # error: misc
    await bus.cancel("x", grace="5")  # error: arg-type
    async with busq.current_job().subprocess("sleep", 5) as program:  # error: arg-type
        code: int = program.wait()  # error: assignment
    with busq.current_job().subprocess("sleep", "5") as blocks:
        await blocks.wait()  # error: misc
    print(text, code)
    await busq.current_job().spawn(measured, 5)  # error: arg-type
    await bus.cancel_where(grupe="g")  # error: call-overload
    await bus.cancel_where(tags={"a": 1})  # error: dict-item
    (await bus.cancel_where(group="g", dry_run=True)).wait()  # error: attr-defined
    await bus.cancel_group("g", kind="k")  # error: call-overload
    await bus.cancel_kind("k", until="soon")  # error: call-overload
    bus.blocking.cancel_group(group="g")  # error: call-overload


@measured.on_cancel  # error: type-var
async def unasked() -> None: ...


@measured.on_cancel(timeout="soon")  # error: call-overload, untyped-decorator
async def impatient(job: busq.CancelledJob) -> None: ...


@resized.on_cancel()  # error: type-var
def misled(job: str) -> None: ...


@measured.finalize  # error: type-var
async def unfinished() -> None: ...


@measured.finalize(never_started=True)  # error: call-overload, untyped-decorator
async def confused(job: busq.FinishedJob) -> None: ...


@resized.finalize()  # error: type-var
def mistaken(job: busq.CancelledJob) -> None: ...


@bus.job(retries="two")  # error: call-overload, untyped-decorator
async def wrong(path: str) -> None: ...


@bus.job(late_success="always")  # error: call-overload, untyped-decorator
async def also_wrong(path: str) -> None: ...
