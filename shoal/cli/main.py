"""The group of commands. An error that users can act on is one line on standard error and exit status 1; a wrong option is 2."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from shoal._base.version import __version__

#: Command -> (module, function). Imported when it runs, so that none pays for the others.
_COMMANDS = {
    "start": ("start", "start"),
    "stop": ("stop", "stop"),
    "drain-node": ("drain", "drain_node"),
    "status": ("status", "status"),
    "health-check": ("status", "health_check"),
    "get-auth-token": ("token", "get_auth_token"),
    "rotate-auth-token": ("token", "rotate_auth_token"),
    "symmetric-run": ("symmetric", "symmetric_run"),
}

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        found: click.Command = getattr(import_module(f"shoal.cli.{module}"), name)
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        from shoal._base.suggestions import did_you_mean

        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(error.message + did_you_mean(args[0], list(_COMMANDS)), ctx) from None


@click.command(cls=_Commands, context_settings=_HELP)
@click.version_option(__version__, message="shoal, version %(version)s")
def group() -> None:
    """Start and stop clusters, and look at them."""


def main(args: list[str] | None = None) -> None:
    """Run the command line, and leave with its exit status."""
    try:
        status = group.main(args, prog_name="shoal", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except (
        ImportError,
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
    ) as error:  # what the runtime tells users; anything else is our mistake
        if os.environ.get("SHOAL_DEBUG"):
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    if isinstance(status, int):  # of the command that ``symmetric-run`` ran
        sys.exit(status)
