"""A gateway in a process of its own, whose wall clock `clocks` moves. Prints its address and keys, then what is asked.

time-machine moves what `time.time` and `datetime.now` say in the whole process; a monotonic clock never jumps.
"""

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import time_machine
from api_world import World, served

from multimoe.feedback import Quota


def main(home: Path) -> None:
    world = World(home, limits={"ratings_per_minute": 10**6})  # each answer is rated, as fast as they come
    quota = Quota(requests_per_minute=100_000, concurrent_requests=64, tokens_per_day=10_000_000)
    _, key = world.log.create_key("steady", ("chat", "rate"), quota=quota)
    soon = datetime.now(UTC) + timedelta(minutes=30)
    _, brief = world.log.create_key("brief", ("chat",), expires=soon)
    clock: time_machine.travel | None = None
    with served(world) as url:
        print(json.dumps({"url": url, "key": key, "brief": brief}), flush=True)
        for line in sys.stdin:
            if clock is not None:
                clock.stop()
            away, ticks = json.loads(line)
            clock = time_machine.travel(time.time() + away, tick=ticks)
            clock.start()
            print(json.dumps(time.time()), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
