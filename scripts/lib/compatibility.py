"""Writes docs/compatibility.md of what scripts/stacks left: compatibility.py RESULTS REQUIREMENTS."""

import json
import sys
from pathlib import Path

STACKS = {"cu13": "PyTorch for CUDA 13, on `null`", "cu12": "PyTorch for CUDA 12, on `null`", "soft": "On `soft`"}
NAMED = ("torch", "triton", "cupy-cuda12x", "numba", "numba-cuda", "nvidia-cublas", "nvidia-cudnn", "nvidia-nccl")
STEPS = ("zeros", "train_step", "train_step_item", "inference_step", "decode_token", "graph_replay",
         "decode_token_graph", "compiled_step")


def versions(requirements, stack):
    """The packages that a reader knows, with their versions."""
    lines = (requirements / f"requirements-stacks-{stack}.txt").read_text().split()
    pinned = [line.split("==") for line in lines if "==" in line]
    return ", ".join(f"{name} {version}" for name, version in pinned if name.startswith(NAMED))


def stats(results, stack, name):
    """The statistics of a run; nothing if it left none."""
    path = results / f"{stack}-{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def last_line(path):
    """What a failed run said last."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].replace("|", "\\|")[:160] if lines else ""


def checks(results, stack):
    """One row per run."""
    for status in sorted(results.glob(f"{stack}-*.status")):
        name = status.stem.removeprefix(f"{stack}-")
        code = status.read_text().strip()
        outcome = status.with_suffix(".outcome")
        if outcome.exists():
            answer = outcome.read_text().strip().replace("\n", " ").replace(" )", ")")
        else:
            answer = "works" if code == "0" else f"exit code {code}: {last_line(status.with_suffix('.log'))}"
        total = stats(results, stack, name)
        code = total.get("module_bytes_out", 0)
        yield (f"| {name.replace('_', ' ')} | {answer} | {total.get('calls', '')} | {total.get('blocking_round_trips', '')}"
               f" | {code} |")


def phases(results, stack):
    """One row per step that is counted alone."""
    found = {}
    for name in ("zeros", "model", "compile_triton"):
        for phase in stats(results, stack, name).get("phases", []):
            found[phase["name"]] = phase
    for name in STEPS:
        if name in found:
            phase = found[name]
            yield f"| {name.replace('_', ' ')} | {phase['calls']} | {phase['blocking_round_trips']} | {phase['bytes_out']} |"


def main():
    results, requirements = Path(sys.argv[1]), Path(sys.argv[2])
    print("# Compatibility\n")
    print("Written by `scripts/stacks`, never by hand. The `null` device takes every call and runs no kernel, so it shows"
          " that a stack starts, runs to its end and how often it waits; `soft` runs kernels that come as PTX.\n")
    for stack, title in STACKS.items():
        rows = list(checks(results, stack))
        if not rows:
            continue
        print(f"## {title}\n\n{versions(requirements, stack)}\n")
        print("| program | result | driver calls | round trips | bytes of code sent |\n|---|---|---|---|---|")
        print("\n".join(rows) + "\n")
        for check, whose, columns in (("cupy_tests", "CuPy", ["not reached"]), ("numba", "numba-cuda", [])):
            modules = results / f"{stack}-{check}.modules"
            if modules.exists():
                head = [f"module of {whose}'s tests", "passed", "failed", "skipped", *columns, "why failed or skipped"]
                print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
                print(modules.read_text())
        steps = list(phases(results, stack))
        if steps:
            print("| step | driver calls | round trips | bytes sent |\n|---|---|---|---|")
            print("\n".join(steps) + "\n")


main()
