"""Write the English texts of all nodes to locales/en/nodeDefs.json, and say what Chinese lacks.

usage: COMFYUI_PATH=HOST_FOLDER HOST_PYTHON locales/update.py
"""

import json
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
sys.path.append(str(PACK / "benchmarks"))  # last: the host comes first

from host_pack import load_pack  # noqa: E402

NodeDefs = dict[str, dict]


def english(nodes: list[type]) -> NodeDefs:
    """Return every text that a user sees on a node, as the host's page looks them up."""
    return {schema.node_id: _node_texts(schema) for schema in (node.GET_SCHEMA() for node in nodes)}


def _node_texts(schema) -> dict:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {item.id: _item_texts(item, item.id) for item in schema.inputs},
        "outputs": {
            str(i): _item_texts(item, item.io_type) for i, item in enumerate(schema.outputs)
        },
    }


def _item_texts(item, name: str) -> dict[str, str]:
    tooltip = {"tooltip": item.tooltip} if item.tooltip else {}
    return {"name": item.display_name or name} | tooltip


def texts(tree: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Return the texts of a tree by their path; what has none is left out."""
    if isinstance(tree, dict):
        return {k: v for name, item in tree.items() for k, v in texts(item, (*path, name)).items()}
    return {path: tree} if isinstance(tree, str) else {}


def main() -> None:
    """Write, compare, print."""
    made = english(load_pack())
    text = json.dumps(made, indent=2, ensure_ascii=True) + "\n"
    (PACK / "locales" / "en" / "nodeDefs.json").write_text(text, encoding="utf-8")
    chinese = json.loads((PACK / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    ours, theirs = texts(made).keys(), texts(chinese).keys()
    for kind, paths in (("missing", ours - theirs), ("left over", theirs - ours)):
        for path in sorted(paths):
            sys.stdout.write(f"{kind} in Chinese: {'.'.join(path)}\n")


if __name__ == "__main__":
    main()
