"""What describes a node, as options of the commands that start one.

Options of Ray that ask for something that does not exist here, or that nothing depends on, are accepted so that scripts run, hidden
from the help, and named in a line of the output: nobody shall believe that they had an effect.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from shoal._base.settings import Settings
    from shoal._core.process.options import HeadOptions

#: Option -> why it has no effect.
_ONE_PORT = "each node has one port, --node-port"
_NO_DASHBOARD = "there is no dashboard yet"
WITHOUT_EFFECT = {
    "--object-manager-port": _ONE_PORT,
    "--runtime-env-agent-port": _ONE_PORT,
    "--dashboard-agent-grpc-port": _ONE_PORT,
    "--dashboard-agent-listen-port": _ONE_PORT,
    "--min-worker-port": "workers need no ports",
    "--max-worker-port": "workers need no ports",
    "--worker-port-list": "workers need no ports",
    "--ray-client-server-port": "drivers join through a node on their machine",
    "--dashboard-host": _NO_DASHBOARD,
    "--dashboard-port": _NO_DASHBOARD,
    "--include-dashboard": _NO_DASHBOARD,
    "--metrics-export-port": "there are no metrics yet",
    "--autoscaling-config": "there is no autoscaler yet",
    "--plasma-directory": "objects live in anonymous shared memory",
    "--include-log-monitor": "each node reads its workers' logs",
    "--tracing-startup-hook": "there is no tracing yet",
    "--redis-username": "there is no Redis",
    "--redis-password": "there is no Redis",
    "--log-style": "",
    "--log-color": "",
}
#: The same, as flags.
FLAGS_WITHOUT_EFFECT = {
    "--disable-usage-stats": "",
    "--enable-usage-stats": "shoal sends nothing anywhere",
    "--no-redirect-output": "output goes to the session's log directory",
    "--ray-debugger-external": "there is no debugger yet",
    "--no-monitor": "",
}


def node_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that ``read_options`` understands."""
    options = [
        click.option("--num-cpus", type=float, help="CPUs to hand out. [default: those this process may use]"),
        click.option("--num-gpus", type=float, help="GPUs to hand out. [default: those found]"),
        click.option("--memory", type=int, help="Bytes of memory for tasks that ask for some. [default: what is free]"),
        click.option("--object-store-memory", type=int, help="Bytes of shared memory for objects. [default: 30 % of memory]"),
        click.option("--resources", default="{}", metavar="JSON", help="Other resources, such as '{\"fast_disk\": 2}'."),
        click.option("--labels", default="", metavar="K=V,..", help="Labels of the node, for label_selector."),
        click.option(
            "--labels-file", type=click.Path(exists=True, dir_okay=False), help="The same, from a YAML or JSON file of label: value."
        ),
        click.option("--node-name", default="", help="How lists call the node. [default: its address]"),
        click.option(
            "--node-ip-address",
            metavar="IP",
            help="Address of this machine at which the others reach it, and the only one that is listened on. "
            "[default: loopback; when joining, the one that leads to the head]",
        ),
        click.option(
            "--node-port",
            "--node-manager-port",
            type=click.IntRange(0, 65535),
            default=0,
            help="The node's one port. [default: a free one]",
        ),
        click.option("--temp-dir", default="", help="Where the session's directory goes. [default: SHOAL_TMPDIR, else /tmp]"),
        click.option(
            "--object-spilling-directory",
            default="",
            metavar="PATH|URL",
            help="Where objects go that find no memory: a directory, or what fsspec reaches (s3://bucket/prefix, file:///nfs/share), from "
            "which other nodes restore them when this one dies. [default: the session's directory]",
        ),
        click.option("--system-config", default="", metavar="JSON", help="Ray's settings, of which object_spilling_config is read."),
        *(click.option(name, hidden=True, expose_value=False, callback=_note) for name in WITHOUT_EFFECT),
        *(click.option(name, is_flag=True, hidden=True, expose_value=False, callback=_note) for name in FLAGS_WITHOUT_EFFECT),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def read_options(given: Mapping[str, Any], node_ip: str, settings: Settings) -> HeadOptions:
    """Make the options of a node process. TypeError, ValueError for what cannot be meant."""
    from shoal._core.api.init_arguments import (
        checked_amount,
        checked_bytes,
        checked_node_labels,
        checked_resources,
        checked_spill_place,
        checked_store_bytes,
    )
    from shoal._core.api.node_overrides import override_node
    from shoal._core.process.options import HeadOptions
    from shoal._core.transport.addresses import TcpAddress

    node = {
        "num_cpus": checked_amount("--num-cpus", given["num_cpus"]),
        "num_gpus": checked_amount("--num-gpus", given["num_gpus"]),
        "resources": checked_resources(_resources(given["resources"])),
        "labels": checked_node_labels({**_labels_file(given["labels_file"]), **_labels(given["labels"])}),
        "object_store_bytes": checked_store_bytes(given["object_store_memory"]),
        "memory_bytes": checked_bytes("--memory", given["memory"]),
        "node_name": given["node_name"],
        "node_ip": node_ip,
        "temp_dir": given["temp_dir"],
        "spill_dir": checked_spill_place(given["object_spilling_directory"], _system_config(given["system_config"])),
    }
    override_node(node, os.environ)
    return HeadOptions(**node, listen=str(TcpAddress(node_ip, given["node_port"])), settings=settings)


def _note(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value in (None, False):
        return
    name = parameter.opts[0]
    why = WITHOUT_EFFECT.get(name) or FLAGS_WITHOUT_EFFECT.get(name)
    if why:
        click.echo(f"{name} has no effect: {why}.", err=True)


def _resources(text: str) -> dict[str, float]:
    try:
        resources = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--resources must be JSON, such as '{{\"fast_disk\": 2}}', got {text!r}: {error}.") from None
    if not isinstance(resources, dict):
        raise ValueError(f"--resources must be a JSON object of name -> amount, got {text!r}.")
    return resources


def _system_config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(f"--system-config must be JSON, got {text!r}: {error}.") from None
    if not isinstance(config, dict):
        raise ValueError(f"--system-config must be a JSON object, got {text!r}.")
    others = sorted(config.keys() - {"object_spilling_config", "object_spilling_directory"})
    if others:
        click.echo(f"--system-config: {', '.join(others)} have no effect: settings are environment variables.", err=True)
    return config


def _labels(text: str) -> dict[str, str]:
    labels = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--labels must be K=V pairs with commas between them, got {pair!r}.")
        labels[key.strip()] = value.strip()
    return labels


def _labels_file(path: str | None) -> dict[str, str]:
    if not path:
        return {}
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        labels = json.loads(text)
    except ValueError:
        try:
            import yaml
        except ImportError:
            raise ValueError(f"{path} is not JSON, and to read YAML PyYAML is needed: pip install pyyaml") from None
        try:
            labels = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is neither JSON nor YAML: {error}") from None
    if not isinstance(labels, dict):
        raise ValueError(f"{path} must hold label: value pairs, got {type(labels).__name__}.")
    return {str(key): str(value) for key, value in labels.items()}
