"""``shoal get-auth-token`` and ``shoal rotate-auth-token``."""

from __future__ import annotations

import click

from .place import address_option, find_cluster


@click.command("get-auth-token")
@click.option("--generate", is_flag=True, help="Make a token if there is none.")
def get_auth_token(generate: bool) -> None:
    """Print the token that clusters of this user are protected by, for other machines' ~/.shoal/auth_token."""
    from shoal._base.auth_token import find_token, make_token

    click.echo(make_token() if generate else find_token())


@click.command("rotate-auth-token")
@address_option
def rotate_auth_token(address: str | None) -> None:
    """Give the cluster a new token, and keep it in ~/.shoal/auth_token. The old one is accepted until the next change."""
    from shoal._base.auth_token import find_token, new_token, replace_token
    from shoal._core.process.asking import rotate_token
    from shoal._core.process.discovery import spell

    old, new = find_token(), new_token()
    replace_token(old)  # refused while nothing has been changed yet, if it cannot be kept there
    control_address, tokens = find_cluster(address)
    rotate_token(control_address, tokens, new.encode())
    path = replace_token(new)
    click.echo(f"The cluster at {spell(control_address)} has a new token, which is kept in {path}.", err=True)
    click.echo("Copies of that file on other machines must be replaced before the next change: 'shoal get-auth-token' prints it.", err=True)
