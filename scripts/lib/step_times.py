"""Table of the times of steps: step_times.py FOLDER, which holds what `scripts/stacks figures` left: for each run
STACK-ADDED-ROUND.log with the times of steps and STACK-ADDED-ROUND.json with the statistics."""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path


def main():
    walls, inside = defaultdict(list), defaultdict(list)
    for log in sorted(Path(sys.argv[1]).glob("*.log")):
        stack, added, _ = log.stem.split("-")
        for step, times in json.loads(log.read_text().splitlines()[-1]).items():
            walls[stack, step, int(added)] += times
        for phase in json.loads(log.with_suffix(".json").read_text())["phases"]:
            inside[stack, phase["name"], int(added)].append(phase["ns_in_calls"] / 1e3)
    print(f"{'stack':6} {'step':16} {'added us':>8} {'steps':>6} {'time us':>9} {'to 0 us':>8} {'us in calls':>12}")
    for (stack, step, added), times in sorted(walls.items()):
        time, near = statistics.median(times), statistics.median(walls[stack, step, 0])
        calls = statistics.median(inside[stack, step, added])
        print(f"{stack:6} {step:16} {added:8} {len(times):6} {time:9.0f} {time / near:8.3f} {calls:12.0f}")


main()
