"""Graphs of a host's nodes, written by name: as prompts for its API and as files for its page.

A host's answer to /object_info says which inputs and outputs each node has, in which order.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

Schemas = dict[str, Any]
"""Node type -> what /object_info says of it."""

_COLUMN_GAP, _ROW_GAP, _TITLE = 60, 70, 40
_SLOT, _WIDGET, _TEXT = 22, 30, 130
_WIDTH, _NOTE_WIDTH = 320, 480
_WITH_PICTURE = ("LoadImage", "LoadVideo", "SaveVideo", "PreviewImage", "KSampler")
"""Node types that show one below their inputs; KSampler while it runs."""

_PANELS = {"More4DSceneViewer": (560, 560), "More4DCameraEditor": (660, 860)}
"""Node types that are drawn by scripts of ours -> their size."""

NOTE = "MarkdownNote"
"""Node type of the page itself, which the server does not know."""

_WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
_DYNAMIC = "COMFY_DYNAMICCOMBO"


class GraphError(ValueError):
    """A graph that the host's nodes do not allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A file that a workflow needs; the page offers to download it."""

    name: str
    """Of the file."""

    url: str
    """Where the page finds it."""

    directory: str
    """Below models/."""


@dataclass(frozen=True, slots=True)
class Link:
    """One output of a node."""

    node: "Node"
    output: str
    """Its name, as shown."""


@dataclass(frozen=True, slots=True)
class Outer:
    """An input of the subgraph that the graph becomes; `value` is what its widget starts with."""

    name: str
    value: Any = None


@dataclass(slots=True, kw_only=True)
class Node:
    """One node of a graph."""

    id: int
    type: str
    column: int
    inputs: dict[str, Any]
    """Name -> value, Link or Outer."""

    title: str | None = None
    models: tuple[Model, ...] = ()

    def __getitem__(self, output: str) -> Link:
        """Return an output by name."""
        return Link(self, output)


@dataclass(slots=True)
class Graph:
    """Nodes in columns from left to right, in each from top to bottom."""

    nodes: list[Node] = field(default_factory=list)
    groups: dict[int, str] = field(default_factory=dict)
    """First column of a group -> its title; it ends before the next one."""

    def add(
        self,
        type: str,
        column: int,
        /,
        *,
        title: str | None = None,
        models: tuple[Model, ...] = (),
        **inputs: Any,
    ) -> Node:
        """Append a node; `inputs` are values or outputs of other nodes."""
        node = Node(
            id=len(self.nodes) + 1, type=type, column=column, inputs=inputs, title=title,
            models=models,
        )  # fmt: skip
        self.nodes.append(node)
        return node

    def note(self, column: int, text: str) -> None:
        """Append a text for people."""
        self.add(NOTE, column, title="Read me", text=text)

    def prompt(self, schemas: Schemas) -> dict[str, dict[str, Any]]:
        """Return what the host's API takes."""
        return {
            str(node.id): {
                "class_type": node.type,
                "inputs": {
                    name: [str(value.node.id), output_index(schemas, value)]
                    if isinstance(value, Link)
                    else value
                    for name, value in (defaults(schemas, node.type) | node.inputs).items()
                },
            }
            for node in self.nodes
            if node.type != NOTE
        }


def input_definitions(schemas: Schemas, type: str) -> dict[str, tuple[Any, dict[str, Any], bool]]:
    """Return name -> (type, options, whether it is required), in order of definition."""
    if type not in schemas:
        raise GraphError(f"The host has no node {type}.")
    found: dict[str, tuple[Any, dict[str, Any], bool]] = {}
    for part in ("required", "optional"):
        for name in schemas[type]["input_order"].get(part, ()):
            kind, *options = schemas[type]["input"][part][name]
            found[name] = kind, options[0] if options else {}, part == "required"
    return found


def is_widget(kind: Any) -> bool:
    """Whether an input of this type is set on the node itself."""
    return isinstance(kind, list) or kind in _WIDGET_TYPES or kind.startswith(_DYNAMIC)


def has_control(name: str, options: dict[str, Any]) -> bool:
    """Whether the page adds a widget that changes this one after each run: seeds have it."""
    return options.get("control_after_generate", name in ("seed", "noise_seed"))


def widget_default(kind: Any, options: dict[str, Any]) -> Any:
    """Return the value that a new node has."""
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, list) else options.get("options")
    if choices:
        return choices[0]["key"] if isinstance(choices[0], dict) else choices[0]
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(str(kind))


def defaults(schemas: Schemas, type: str) -> dict[str, Any]:
    """Return the values of a new node."""
    found: dict[str, Any] = {}
    for name, (kind, options, _) in input_definitions(schemas, type).items():
        if is_widget(kind):
            found |= _with_nested(name, kind, options)
    return found


def _with_nested(name: str, kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the value of a widget, and of those that a dynamic one brings along."""
    found = {name: widget_default(kind, options)}
    if isinstance(kind, str) and kind.startswith(_DYNAMIC):
        chosen = next(o for o in options["options"] if o["key"] == found[name])
        for part in chosen["inputs"].values():
            for inner, (inner_kind, *rest) in part.items():
                found |= _with_nested(f"{name}.{inner}", inner_kind, (rest or [{}])[0])
    return found


def output_index(schemas: Schemas, link: Link) -> int:
    """Return the place of an output.

    Raises:
        GraphError: there is none of that name.
    """
    names = schemas[link.node.type]["output_name"]
    matching = [i for i, name in enumerate(names) if name.lower() == link.output.lower()]
    if not matching:
        raise GraphError(f"{link.node.type} has no output {link.output}, but {', '.join(names)}.")
    return matching[0]


def page_file(graph: Graph, schemas: Schemas) -> dict[str, Any]:
    """Return the file that the host's page loads."""
    nodes, links = page_nodes(graph, schemas)
    return {
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": _groups(graph, nodes),
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [40, 120]}},
        "version": 0.4,
    }


def page_nodes(graph: Graph, schemas: Schemas) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Return nodes and links as a file has them."""
    nodes = {node.id: _page_node(node, schemas) for node in graph.nodes}
    links: list[list[Any]] = []
    for node in graph.nodes:
        for slot, socket in enumerate(nodes[node.id]["inputs"]):
            value = node.inputs.get(socket["name"])
            if not isinstance(value, Link):
                continue
            origin, index = nodes[value.node.id], output_index(schemas, value)
            socket["link"] = len(links) + 1
            origin["outputs"][index]["links"].append(socket["link"])
            kind = origin["outputs"][index]["type"]
            links.append([socket["link"], origin["id"], index, node.id, slot, kind])
    _place(graph, nodes)
    return list(nodes.values()), links


def _page_node(node: Node, schemas: Schemas) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": node.id, "type": node.type, "pos": [0, 0], "size": [0, 0], "flags": {},
        "order": node.id - 1, "mode": 0, "inputs": [], "outputs": [],
    }  # fmt: skip
    if node.title is not None:
        entry["title"] = node.title
    if node.type == NOTE:
        text = node.inputs["text"]
        lines = sum(1 + len(line) // 66 for line in text.splitlines())
        # On the page's own brown for notes, its blue for code cannot be read.
        entry |= {"properties": {}, "widgets_values": [text], "color": "#222", "bgcolor": "#000"}
        entry["size"] = [_NOTE_WIDTH, 60 + 24 * lines]
        return entry
    definitions = input_definitions(schemas, node.type)
    if unknown := set(node.inputs) - set(definitions):
        raise GraphError(f"{node.type} has no input {unknown}, but {', '.join(definitions)}.")
    sockets, widgets, values = [], [], []
    for name, (kind, options, required) in definitions.items():
        shown = "COMBO" if isinstance(kind, list) else kind
        socket: dict[str, Any] = {"name": name, "type": shown, "link": None}
        socket |= {} if required else {"shape": 7}
        if is_widget(kind):
            widgets.append(socket | {"widget": {"name": name}})
            values.append(_widget_value(node.inputs.get(name), kind, options))
            if has_control(name, options):
                values.append("fixed")
            if options.get("image_upload") or options.get("video_upload"):
                values.append("image")
        else:
            sockets.append(socket)
    schema = schemas[node.type]
    entry["inputs"] = sockets + widgets
    entry["outputs"] = [
        {"name": name, "type": kind, "links": []}
        for name, kind in zip(schema["output_name"], schema["output"], strict=True)
    ]
    properties: dict[str, Any] = {"Node name for S&R": node.type}
    entry["properties"] = properties
    if node.models:
        properties["models"] = [asdict(model) for model in node.models]
    entry["widgets_values"] = values
    long_texts = sum(1 for _, options, _ in definitions.values() if options.get("multiline"))
    slots = max(len(sockets), len(entry["outputs"]))
    picture = 260 if node.type in _WITH_PICTURE else 0
    height = _TITLE + _SLOT * slots + _WIDGET * len(widgets) + _TEXT * long_texts + picture
    entry["size"] = list(_PANELS.get(node.type, (_WIDTH, height)))
    return entry


def _widget_value(given: Any, kind: Any, options: dict[str, Any]) -> Any:
    if isinstance(given, Outer):
        given = given.value
    if given is None or isinstance(given, Link):
        return widget_default(kind, options)
    return given


def _place(graph: Graph, nodes: dict[int, dict[str, Any]]) -> None:
    x = 0
    for column in range(max((node.column for node in graph.nodes), default=0) + 1):
        y, members = 0, [node for node in graph.nodes if node.column == column]
        if column in graph.groups and column > 0:
            x += _COLUMN_GAP
        for node in members:
            nodes[node.id]["pos"] = [x, y]
            y += nodes[node.id]["size"][1] + _ROW_GAP
        x += max((nodes[n.id]["size"][0] for n in members), default=0) + _COLUMN_GAP


def _groups(graph: Graph, nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    columns, starts = {node.id: node.column for node in graph.nodes}, sorted(graph.groups)
    found = []
    for i, start in enumerate(starts):
        stop = starts[i + 1] if i + 1 < len(starts) else max(columns.values()) + 1
        boxes = [n for n in nodes if start <= columns[n["id"]] < stop]
        left = min(n["pos"][0] for n in boxes) - 20
        right = max(n["pos"][0] + n["size"][0] for n in boxes) + 20
        top = min(n["pos"][1] for n in boxes) - 90
        bottom = max(n["pos"][1] + n["size"][1] for n in boxes) + 40
        found.append(
            {"id": i + 1, "title": graph.groups[start], "color": "#3f789e", "font_size": 24,
             "flags": {}, "bounding": [left, top, right - left, bottom - top]}
        )  # fmt: skip
    return found
