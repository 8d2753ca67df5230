"""Whether the server's memory stays flat over many prompts, each with another picture and seed.

    python -m benchmarks.host_memory

Claim: after the third of 20 prompts (9 frames, 4 steps, no node cached but the loaders) what the
server holds stays within 5 %. `benchmarks/comfy_host.py` says which host is started.
"""

import argparse
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.comfy_host import ComfyHost, Prompt, installations, link_pack
from training.procedural.demo_picture import FIRST_HELD_OUT_SEED, demo_scene
from workflows.build import tiny_video
from workflows.graph import Graph

_CLAIM = 0.05
_SETTLED = 3


def picture(seed: int) -> tuple[bytes, str]:
    """Return a picture file and what moves in it."""
    scene = demo_scene(FIRST_HELD_OUT_SEED + seed)
    buffer = io.BytesIO()
    Image.fromarray((255 * scene.image).round().byte().numpy()).save(buffer, "png")
    return buffer.getvalue(), scene.caption


def with_picture(prompt: Prompt, name: str, text: str) -> Prompt:
    """Put a loaded picture in the place of the example."""
    example = next(k for k, node in prompt.items() if node["class_type"] == "More4DExamplePicture")
    changed: Prompt = json.loads(json.dumps(prompt))
    changed[example] = {"class_type": "LoadImage", "inputs": {"image": name}}
    for node in changed.values():
        if node["inputs"].get("text") == [example, 1]:
            node["inputs"]["text"] = text
    return changed


def main() -> None:
    """Start the host, run the prompts, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--num-frames", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size-hw", type=int, nargs=2, default=(128, 176))
    parser.add_argument("--weights", type=Path, help="other embedded files")
    parser.add_argument("--host-option", action="append", default=[], help="such as --cache-none")
    parser.add_argument("--output", type=Path, help="JSON with the figures")
    options = parser.parse_args()
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        link_pack(base, options.weights)
        with ComfyHost(installations()[0], base, *options.host_option) as host:
            schemas = host.get("/object_info")
            print(f"{host.resident_mb():7.0f} MB  before the first prompt")
            for seed in range(options.prompts):
                content, text = picture(seed)
                graph, (height, width) = Graph(), options.size_hw
                tiny_video(
                    graph, num_frames=options.num_frames, height=height, width=width,
                    steps=options.steps, seed=seed,
                )  # fmt: skip
                name = host.upload(content, f"picture-{seed}.png")
                run = host.run(with_picture(graph.prompt(schemas), name, text), timeout=1800)
                if run.end != "execution_success":
                    raise RuntimeError(json.dumps(run.detail)[:2000])
                found.append(host.resident_mb())
                print(f"{found[-1]:7.0f} MB  after prompt {seed + 1} ({run.seconds:.1f} s)")
    settled = np.array(found[_SETTLED - 1 :])
    growth = settled.max() / settled[0] - 1
    print(f"at most {growth:+.1%} after prompt {_SETTLED}; claim: within {_CLAIM:.0%}")
    if options.output is not None:
        options.output.write_text(json.dumps({"resident_mb": found, "growth": growth}, indent=2))


if __name__ == "__main__":
    main()
