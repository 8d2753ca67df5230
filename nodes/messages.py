"""Sentences that a node shows on itself while it runs."""

from typing import Any


def show_on_node(node: Any, text: str) -> None:
    """Show a text on a running node; it must have `io.Hidden.unique_id` among its hidden inputs.

    Without a server, as in a script that calls nodes, there is no page to show it on.
    """
    from server import PromptServer

    server, hidden = getattr(PromptServer, "instance", None), getattr(node, "hidden", None)
    if server is not None and hidden is not None:
        server.send_progress_text(text, hidden.unique_id)
