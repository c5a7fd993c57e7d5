"""``shoal get-auth-token``."""

from __future__ import annotations

import click


@click.command("get-auth-token")
@click.option("--generate", is_flag=True, help="Make a token if there is none.")
def get_auth_token(generate: bool) -> None:
    """Print the token that clusters of this user are protected by, for other machines' ~/.shoal/auth_token."""
    from shoal._base.auth_token import find_token, make_token

    click.echo(make_token() if generate else find_token())
