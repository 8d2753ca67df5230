"""Runs inside a ComfyUI host's Python: imports the host and the pack, and calls what a test names.

usage: worker.py HOST_FOLDER PACK_FOLDER SCRATCH_FOLDER

One line of JSON comes in: {"call": "module.function", "inputs": "file"}; one goes out:
{"outputs": "file"} or {"error": "type", "message": "..."}. Files hold dictionaries that torch
saved.
"""

import importlib
import json
import os
import sys
import traceback
import types
from pathlib import Path

host, pack, scratch = (Path(argument).resolve() for argument in sys.argv[1:4])
sys.argv = sys.argv[:1]
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever prints must not come between the replies

sys.path.insert(0, str(host))
from comfy.cli_args import args  # noqa: E402

args.cpu = True  # before the host looks for devices

import folder_paths  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
for kind in ("output", "temp", "input", "user"):
    (scratch / kind).mkdir(parents=True, exist_ok=True)
    getattr(folder_paths, f"set_{kind}_directory")(str(scratch / kind))

# The pack as the host imports it, but for its entry point: relative imports from any folder name.
package = types.ModuleType("more4d_pack")
package.__path__ = [str(pack)]
sys.modules["more4d_pack"] = package
sys.path.append(str(Path(__file__).parent / "inside"))

importlib.import_module("more4d_pack.nodes.wan_model").register_models()
print(json.dumps({"ready": True}), file=replies, flush=True)

for line in sys.stdin:
    request = json.loads(line)
    module, _, function = request["call"].partition(".")
    try:
        inputs = torch.load(request["inputs"], weights_only=True)
        with torch.no_grad():
            outputs = getattr(importlib.import_module(module), function)(**inputs)
        torch.save(outputs, request["inputs"])
        reply = {"outputs": request["inputs"]}
    except Exception as error:  # told to the test, which raises it again
        traceback.print_exc()
        reply = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(reply), file=replies, flush=True)
