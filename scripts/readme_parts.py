"""
The parts of the README that are drawn from the code: the diagram of states and the table of keys.

    python scripts/readme_parts.py           say whether the README is up to date; exit 1 if it is not
    python scripts/readme_parts.py --write   put the parts in
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from busq.protocol.keys import KEY_TABLE
from busq.protocol.states import TERMINAL, State, moves

README = Path(__file__).parent.parent / "README.md"


def diagram() -> str:
    """The table of transitions as a Mermaid diagram: one arrow for each pair of states, with its verbs."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for before, verb, after in moves():
        arrows.setdefault((str(before or "[*]"), str(after)), []).append(str(verb))
    lines = ["```mermaid", "stateDiagram-v2", "    direction LR"]
    lines += [f"    {before} --> {after}: {', '.join(verbs)}" for (before, after), verbs in arrows.items()]
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    return "\n".join([*lines, "```"])


def key_table() -> str:
    """The table of keys, as Markdown."""
    lines = ["| key, after `busq:` | type | written by | leaves |", "|---|---|---|---|"]
    lines += [f"| `{key}` | {kind} | {owner} | {expiry} |" for key, kind, owner, expiry in KEY_TABLE]
    return "\n".join(lines)


PARTS = {"states": diagram, "keys": key_table}


def with_parts(text: str) -> str:
    """The README's text with every drawn part as the code has it now."""
    for name, draw in PARTS.items():
        block = f"<!-- {name}: drawn by scripts/readme_parts.py -->\n{draw()}\n<!-- /{name} -->"
        text, found = re.subn(rf"<!-- {name}:.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"README.md has {found} places for {name!r}; it takes one")
    return text


def main() -> int:
    text = README.read_text()
    fresh = with_parts(text)
    if "--write" in sys.argv[1:]:
        README.write_text(fresh)
        return 0
    if fresh != text:
        print("README.md is not what the code says: run `python scripts/readme_parts.py --write`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
