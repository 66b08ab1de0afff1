"""Resident memory of the running product, by process: `python benchmarks/memory.py PID` of `multimoe serve`.

Proportional set size, so that what processes share is counted once. Linux only.
"""

import sys
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table


def children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        found[int(fields[1])].append(int(status.parent.name))
    return found


def pss(pid: int) -> int:
    """In KiB; 0 for a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().split()
    except OSError:
        return ""
    return words[0] if words and words[0].startswith("ray::") else " ".join(Path(word).name for word in words[:3])


def main() -> None:
    tree, waiting, pids = children(), [int(sys.argv[1])], []
    while waiting:
        pids.append(waiting.pop())
        waiting += tree[pids[-1]]
    table = Table("MiB", "process")
    for pid in sorted(pids, key=pss, reverse=True):
        table.add_row(f"{pss(pid) / 1024:.0f}", name(pid)[:90])
    console = Console(width=110)
    console.print(table)
    console.print(f"{sum(map(pss, pids)) / 2**20:.2f} GiB in {len(pids)} processes")


if __name__ == "__main__":
    main()
