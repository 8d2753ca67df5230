"""A graph as a subgraph blueprint: one node of the host's library, with the graph inside."""

import uuid
from typing import Any

from .graph import Graph, Link, Node, Outer, Schemas, output_index, page_nodes

_INPUT_NODE, _OUTPUT_NODE = -10, -20
_SLOT = 20


def blueprint_file(
    name: str, graph: Graph, outputs: dict[str, Link], schemas: Schemas, description: str
) -> dict[str, Any]:
    """Return the file that the host lists in its node library.

    Every `Outer` value in the graph is an input of the subgraph, in order of first use.
    """
    nodes, rows = page_nodes(graph, schemas)
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(keys, row, strict=True)) for row in rows]
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"more4d/{name}"))
    ports = _inputs(identity, graph, nodes, links)
    ends = _outputs(identity, outputs, schemas, nodes, links)
    right = max(node["pos"][0] + node["size"][0] for node in nodes)
    inner = {
        "id": identity,
        "version": 1,
        "state": {
            "lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": _INPUT_NODE, "bounding": [-300, 0, 160, 48 + _SLOT * len(ports)]},
        "outputNode": {"id": _OUTPUT_NODE, "bounding": [right + 120, 0, 160, 48 + _SLOT * 2]},
        "inputs": [port for port, _ in ports],
        "outputs": ends,
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": links,
        "extra": {},
        "category": "More4D",
        "description": description,
    }  # fmt: skip
    return {
        "revision": 0,
        "last_node_id": len(nodes) + 1,
        "last_link_id": 0,
        "nodes": [_outer_node(name, identity, len(nodes) + 1, ports, ends)],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [inner]},
    }


Port = tuple[dict[str, Any], tuple[int, str] | None]
"""An input of the subgraph, and the node and widget that it sets, if it sets one."""


def _inputs(identity: str, graph: Graph, nodes: list[Any], links: list[Any]) -> list[Port]:
    uses: dict[str, list[tuple[Node, int]]] = {}
    for node, entry in zip(graph.nodes, nodes, strict=True):
        for slot, socket in enumerate(entry["inputs"]):
            value = node.inputs.get(socket["name"])
            if isinstance(value, Outer):
                uses.setdefault(value.name, []).append((node, slot))
    ports = []
    for index, (name, targets) in enumerate(uses.items()):
        sockets = [nodes[node.id - 1]["inputs"][slot] for node, slot in targets]
        ids = []
        for (node, slot), socket in zip(targets, sockets, strict=True):
            ids.append(len(links) + 1)
            socket["link"] = ids[-1]
            links.append(
                {"id": ids[-1], "origin_id": _INPUT_NODE, "origin_slot": index,
                 "target_id": node.id, "target_slot": slot, "type": socket["type"]}
            )  # fmt: skip
        port = _port(identity, name, sockets[0]["type"], ids, [-160, 24 + _SLOT * index])
        is_widget = "widget" in sockets[0]
        ports.append((port, (targets[0][0].id, sockets[0]["name"]) if is_widget else None))
    return ports


def _outputs(
    identity: str, outputs: dict[str, Link], schemas: Schemas, nodes: list[Any], links: list[Any]
) -> list[dict[str, Any]]:
    ends = []
    for index, (name, link) in enumerate(outputs.items()):
        slot = output_index(schemas, link)
        origin = nodes[link.node.id - 1]["outputs"][slot]
        row = {
            "id": len(links) + 1, "origin_id": link.node.id, "origin_slot": slot,
            "target_id": _OUTPUT_NODE, "target_slot": index, "type": origin["type"],
        }  # fmt: skip
        links.append(row)
        origin["links"].append(row["id"])
        place = [0, 24 + _SLOT * index]
        ends.append(_port(identity, f"output {name}", origin["type"], [row["id"]], place, name))
    return ends


def _port(
    identity: str, key: str, kind: str, ids: list[int], place: list[int], name: str | None = None
) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid5(uuid.UUID(identity), key)), "name": name or key, "type": kind,
        "linkIds": ids, "localized_name": name or key, "pos": place,
    }  # fmt: skip


def _outer_node(
    name: str, identity: str, id: int, ports: list[Port], ends: list[dict[str, Any]]
) -> dict[str, Any]:
    inputs = [
        {"name": port["name"], "type": port["type"], "link": None}
        | ({"widget": {"name": port["name"]}} if widget else {})
        for port, widget in ports
    ]
    promoted = [[str(node), widget] for _, found in ports if found for node, widget in [found]]
    return {
        "id": id, "type": identity, "pos": [0, 0], "size": [400, 80 + 30 * len(ports)],
        "flags": {}, "order": 0, "mode": 0, "inputs": inputs,
        "outputs": [{"name": e["name"], "type": e["type"], "links": []} for e in ends],
        "properties": {"proxyWidgets": promoted}, "widgets_values": [], "title": name,
    }  # fmt: skip
