"""Options that mean nothing without another one: given alone they are refused, for they would do nothing."""

from collections.abc import Mapping

import typer


def refuse_options_without(required: str, value: object, options: Mapping[str, object]) -> None:
    """Refuse options, None where they are left out, that mean nothing without the wanted one."""
    if not value and (dependent := [name for name, option_value in options.items() if option_value is not None]):
        raise typer.BadParameter(f"{dependent[0]} means nothing without {required}: add that, or leave it out")
