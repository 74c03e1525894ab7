"""Options that mean nothing without another one: given alone they are refused, for they would do nothing."""

from collections.abc import Mapping

import typer


def refuse_idle(wanted: str, given: object, options: Mapping[str, object]) -> None:
    """Refuse options, None where they are left out, that mean nothing without the wanted one."""
    if not given and (idle := [name for name, each in options.items() if each is not None]):
        raise typer.BadParameter(f"{idle[0]} means nothing without {wanted}: add that, or leave it out")
