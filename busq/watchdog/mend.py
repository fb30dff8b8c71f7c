"""
Giving jobs an entry again whose queue was removed under them.

A queued job without an entry would wait for ever, and so would one whose worker died meanwhile: nobody finds them. They
are taken over like those of a lost worker, by the same script and the same guards.
"""

from __future__ import annotations

from collections import Counter

from busq import events
from busq.protocol.codec import ErrorInfo, encode_error
from busq.store import losses
from busq.store.losses import Stranded
from busq.store.store import Store
from busq.watchdog.takeover import tell_taken

log = events.logger("busq.watchdog")


async def mend(store: Store, shard: int, done: Counter[str]) -> bool:
    """
    Look through the records of a shard where a queue was lost; `done` counts by event what became of jobs.

    Jobs are queued again or, if their attempts are spent, ended. Return whether to look again later: running jobs have
    lost their entries too, and need them when their worker dies.
    """
    loss = await losses.lost_word(store, shard)
    if loss is None:
        return False
    mended, later = 0, False
    async for found in losses.stranded(store, shard):
        places: dict[tuple[str, str], list[Stranded]] = {}
        for each in found:
            if each.held:
                later = True
                continue
            places.setdefault((each.queue, each.owner), []).append(each)
        for (queue, owner), jobs in places.items():
            failure = encode_error(ErrorInfo("Lost", "its worker was lost, and its entry was removed"))
            held = [(job.jid, job.entry) for job in jobs]
            answers = await store.reclaim(shard, queue, owner, held, owner_gone=False, failure=failure)
            for job, (word, state) in zip(jobs, answers, strict=True):
                taken = tell_taken(done, word, state, jid=job.jid, queue=queue, worker=owner)
                mended += taken
                done[events.QUEUE_MENDED] += taken
    if not later:
        await losses.mark_mended(store, shard, loss)
    if mended or not later:
        events.tell(log, events.QUEUE_MENDED, shard=shard, jobs=mended)
    return later
