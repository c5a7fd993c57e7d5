"""The command line without processes: options, reports, exit statuses."""

from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from shoal._base.settings import Settings
from shoal._core.wire.messages import Demand, GroupDemand, NodeRecord
from shoal.cli.main import group, main
from shoal.cli.node_options import node_options, read_options
from shoal.cli.status import render

CPU = 10_000


def options(*arguments):
    """What the arguments say about the node."""
    read = []

    @click.command()
    @node_options
    def command(**given):
        read.append(read_options(given, "127.0.0.1", Settings()))

    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return read[0], result.stderr


def test_what_a_node_gets():
    node, notes = options(
        "--num-cpus", "2.5", "--resources", '{"a": 1}', "--labels", "zone=b, disk=ssd", "--node-port", "7000", "--node-name", "x"
    )
    assert (node.num_cpus, node.num_gpus, node.resources, node.labels) == (2.5, None, {"a": 1.0}, {"zone": "b", "disk": "ssd"})
    assert (node.listen, node.node_name, notes) == ("tcp:127.0.0.1:7000", "x", "")


def test_labels_from_a_file(tmp_path):
    path = tmp_path / "labels"
    path.write_text(json.dumps({"zone": "a", "rack": 7}))
    assert options("--labels-file", str(path), "--labels", "zone=b")[0].labels == {"zone": "b", "rack": "7"}


def test_options_without_effect_are_named():
    _, notes = options("--min-worker-port", "10002", "--include-dashboard", "false", "--disable-usage-stats")
    assert notes.splitlines() == [
        "--min-worker-port has no effect: workers need no ports.",
        "--include-dashboard has no effect: there is no dashboard yet.",
    ]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--resources", "fast"], "--resources must be JSON"),
        (["--resources", "[1]"], "a JSON object"),
        (["--resources", '{"CPU": 1}'], "num_cpus"),
        (["--labels", "zone"], "K=V pairs"),
        (["--num-cpus", "-1"], "--num-cpus"),
        (["--object-store-memory", "5"], "object_store_memory"),
    ],
)
def test_what_cannot_be_meant(arguments, match):
    with pytest.raises(ValueError, match=match):
        options(*arguments)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["strat"], 2, "Did you mean 'start'?"),
        (["start"], 2, "Give one of --head and --address"),
        (["start", "--head", "--address", "a:1"], 2, "Give one of --head and --address"),
        (["start", "--address", "a:1", "--port", "1"], 2, "The node's own is --node-port"),
        (["start", "--address", "nonsense"], 1, "Error: it is no address"),
        (["start", "--head", "--resources", "x"], 1, "Error: --resources must be JSON"),
        (["status"], 1, "Error: No cluster of this user runs on this machine"),
        (["status", "--address", "127.0.0.1:1"], 1, "Error: There is no token of a cluster"),
        (["health-check"], 1, "Error: No cluster of this user runs on this machine"),
        (["stop", "--session", "x"], 1, "Nothing of x runs on this machine"),
        (["get-auth-token"], 1, "Error: There is no token of a cluster"),
        (["symmetric-run", "--address", "127.0.0.1:1", "--min-nodes", "2", "--", "true"], 2, "no other machine can reach"),
    ],
)
def test_mistakes_end_in_one_line_and_a_status(monkeypatch, tmp_path, capsys, arguments, status, words):
    monkeypatch.setenv("SHOAL_TMPDIR", str(tmp_path))
    monkeypatch.setenv("SHOAL_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (status, "")
    assert words in err
    assert "Traceback" not in err


def test_nothing_to_stop(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SHOAL_TMPDIR", str(tmp_path))
    main(["stop"])
    assert capsys.readouterr().out == "Did not find any active shoal processes.\n"


def test_the_token_goes_to_standard_output_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SHOAL_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    main(["get-auth-token", "--generate"])
    out, err = capsys.readouterr()
    assert (out, err) == ((tmp_path / "token").read_text(), "")


@pytest.mark.parametrize("command", ["start", "stop", "status", "health-check", "get-auth-token", "rotate-auth-token", "symmetric-run"])
def test_each_command_has_help(command):
    for flag in ("-h", "--help"):
        result = CliRunner().invoke(group, [command, flag])
        assert result.exit_code == 0, result.output
        assert "Usage:" in result.output


def node(number, total, available, **more):
    return NodeRecord(bytes([number]) * 28, "", f"host{number}", "10.0.0.1", total, available, {}, **more)


def test_the_report():
    nodes = [
        node(
            1,
            {"CPU": 4 * CPU, "memory": (3 << 30) * CPU, "node:10.0.0.1": CPU},
            {"CPU": CPU, "memory": (3 << 30) * CPU, "node:10.0.0.1": CPU},
        ),
        node(2, {"CPU": 2 * CPU, "GPU": CPU // 2}, {"CPU": 2 * CPU, "GPU": CPU // 2}, name="second"),
        node(3, {}, {}, alive=False, death_reason="Its connection was lost."),
    ]
    lines = render(nodes, 0.25)
    assert lines[0].startswith("======== Autoscaler status: 19") or lines[0].startswith("======== Autoscaler status: 70")
    assert lines[0].endswith(".250000 ========")
    assert lines[1:] == [
        "Node status", "-" * 63,
        "Active:", f" 1 node_{'01' * 28}",
        "Idle:", f" 1 node_{'02' * 28} (second)",
        "Pending:", " (no pending nodes)",
        "Recent failures:", f" node_{'03' * 28}: Its connection was lost.",
        "", "Resources", "-" * 63,
        "Total Usage:", " 3.0/6.0 CPU", " 0.0/0.5 GPU", " 0B/3.00GiB memory",
        "", "From request_resources:", " (none)",
        "Pending Demands:", " (no resource demands)",
    ]  # fmt: skip


def test_what_waits_is_in_the_report():
    demands = [Demand((("CPU", CPU), ("memory", 2 * CPU)), 1000), Demand((("GPU", CPU // 2),), 1, (("zone", "in(a)"),))]
    bundle, other = (("CPU", CPU),), (("GPU", CPU),)
    groups = [GroupDemand([bundle, bundle, other], "SPREAD", 2)]
    lines = render([], 0.25, demands, groups)
    assert lines[lines.index("Pending Demands:") + 1 :] == [
        " {'CPU': 1.0, 'memory': 2.0}: 1000+ pending tasks/actors",
        " {'GPU': 0.5} where {'zone': 'in(a)'}: 1+ pending tasks/actors",
        " {'CPU': 1.0} * 2, {'GPU': 1.0} * 1 (SPREAD): 2+ pending placement groups",
    ]
