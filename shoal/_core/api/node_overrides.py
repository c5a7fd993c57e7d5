"""What the environment says about the node, over what the program says: for who runs a program that he does not want to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal._base.settings import read_json

from .init_arguments import checked_amount, checked_bytes, checked_node_labels, checked_resources, checked_store_bytes


def override_node(node: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Put the resources of RAY_OVERRIDE_RESOURCES and the labels of RAY_OVERRIDE_LABELS over those of ``node``, name by name.

    Raises:
        ValueError: one is not a JSON object of names and proper values.
    """
    resources = read_json("OVERRIDE_RESOURCES", "resource -> amount", environ)
    try:
        for name, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
            if name in resources:
                node[field] = checked_amount(name, resources.pop(name))
        if "memory" in resources:
            node["memory_bytes"] = checked_bytes("memory", resources.pop("memory"))
        if "object_store_memory" in resources:
            node["object_store_bytes"] = checked_store_bytes(resources.pop("object_store_memory"))
        node["resources"] = {**node["resources"], **checked_resources(resources)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"The environment variable RAY_OVERRIDE_RESOURCES cannot be used: {error}") from None
    labels = read_json("OVERRIDE_LABELS", "label -> value", environ)
    try:
        node["labels"] = {**node["labels"], **checked_node_labels(labels)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"The environment variable RAY_OVERRIDE_LABELS cannot be used: {error}") from None
