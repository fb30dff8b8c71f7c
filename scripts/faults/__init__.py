"""
Faults of every sort, made to happen to a whole bus of real processes; `scripts/chaos.py` is the door.

One run leaves one folder, and whoever judges needs nothing else:

    server/appendonlydir/   every write in the server's own order (append-only file, never rewritten, with timestamps);
                            server0, server1, … for the nodes of a cluster
    history/*.jsonl         what each process did and saw, one file for each, one line for each event
    run.json                run, seed, namespace, shards, settings, expect_drained, and the name of the dump
    final.json              every key of the bus after the drain, and INFO before and after
    faults.json             the counts: what was done to whom, and what the workload did
    logs/                   what the processes said

A line of history has v, run, seq, mono (ns), wall (ms), proc (`name:pid`), role (client, handler, nemesis, probe), ev,
type (invoke, ok, fail, info), op, jid, inc, attempt (a nonce of the handler's own), fence (the number of the attempt),
val and err. An invoke that nothing closes belongs to a process that died, and says that nobody knows. A process that
was killed may leave half a line at the end of its file.
"""
