"""How long the workflow with the embedded models takes in ComfyUI on a CPU, node by node.

    python -m benchmarks.host_workflow --cores 2

Claims: at most 5 minutes from queue to video on 2 cores; the render node costs at most 5 % more
than the backend call on the same scene. `benchmarks/comfy_host.py` says which host is started.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.comfy_host import ComfyHost, Listener, Prompt, installations, link_pack
from workflows.build import tiny_video
from workflows.graph import Graph

_CLAIM_S = 300.0


def node_seconds(listener: Listener, host: ComfyHost, prompt: Prompt) -> dict[str, float]:
    """Run a prompt; return the seconds of each node, in order, and of all as "whole"."""
    start = last = time.monotonic()
    prompt_id, running, found = host.queue(prompt, listener), None, {}
    while True:
        kind, data = listener.next(timeout=1800)
        now = time.monotonic()
        if kind == "executing" and data.get("prompt_id") == prompt_id:
            if running is not None:
                name = f"{prompt[running]['class_type']} {running}"
                found[name] = found.get(name, 0.0) + now - last
            running, last = data["node"], now
        if kind == "execution_success":
            return found | {"whole": now - start}
        if kind in ("execution_error", "execution_interrupted"):
            raise RuntimeError(json.dumps(data)[:2000])


def main() -> None:
    """Start the host, run the workflow, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="each with another seed")
    parser.add_argument("--weights", type=Path, help="other embedded files")
    parser.add_argument("--num-frames", type=int, default=49)
    parser.add_argument("--output", type=Path, help="JSON with the figures")
    options = parser.parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: options.cores]))
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        link_pack(base, options.weights)
        with ComfyHost(installations()[0], base, threads=options.cores) as host:
            schemas = host.get("/object_info")
            for seed in range(options.repeats):
                graph = Graph()
                tiny_video(graph, num_frames=options.num_frames, seed=seed)
                before = host.processor_seconds()
                with host.listen() as listener:
                    runs.append(node_seconds(listener, host, graph.prompt(schemas)))
                computed = (host.processor_seconds() - before) / options.cores
                print(f"{computed:8.2f} s  computing on each core; the rest is waiting for others")
    for name, seconds in runs[0].items():
        print(f"{seconds:8.2f} s  {name}")
    whole = statistics.median(run["whole"] for run in runs)
    print(f"{whole:.1f} s on {options.cores} cores; claim: at most {_CLAIM_S:.0f} s")
    if options.output is not None:
        options.output.write_text(json.dumps({"cores": options.cores, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
