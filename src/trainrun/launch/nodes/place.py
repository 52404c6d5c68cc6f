"""The node rank of this launch, and the address of node 0: from the recipe and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from trainrun.errors import UsageError
from trainrun.launch.nodes.endpoint import PORT, Endpoint, parse

_HOW_MANY = "launch.nodes or --nodes says how many there are"


class Place(NamedTuple):
    """This node's rank, the number of nodes, and the address of node 0."""

    node: int
    nodes: int
    where: Endpoint


def find_place(recipe: Mapping[str, Any], node_rank: int | None, endpoint: str | None) -> Place | None:
    """Find the place of this node.

    Returns None for a launch on one node, or one whose backend knows about nodes itself. Raises UsageError.
    """
    table = recipe.get("launch", {})
    nodes = table.get("nodes", 1)
    if not isinstance(nodes, int) or table.get("backend") != "local":
        return None
    if node_rank is not None and not 0 <= node_rank < max(nodes, 1):
        raise UsageError(f"--node-rank: expected 0 to {nodes - 1} of {nodes} nodes, got {node_rank}; {_HOW_MANY}")
    if nodes <= 1:
        return None
    if node_rank is None or endpoint is None:
        raise UsageError(
            f"launch.nodes is {nodes}: give each node its rank and the address of node 0; "
            f"for example --node-rank 0 --rdzv-endpoint node0:{PORT}"
        )
    return Place(node_rank, nodes, parse(endpoint))
