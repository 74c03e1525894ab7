"""Define the options that name a base, for all commands."""

import typer
from typer.models import OptionInfo

from velatura.sampling.named_bases import (
    DEFAULT_LOAD_OPTIONS,
    LoadOptions,
    explain_missing,
    is_path,
    open_base,
    open_recipe_base,
    refuse_unknown_base,
)

__all__ = [
    "DEFAULT_LOAD_OPTIONS",
    "LoadOptions",
    "base_option",
    "explain_missing",
    "is_path",
    "open_base",
    "open_recipe_base",
    "part_option",
    "prediction_option",
    "refuse_unknown_base",
    "zero_snr_option",
]


def base_option(panel: str, default: str | bool = True) -> OptionInfo:
    """Return the option --base for a panel of the command's help."""
    help_text = "tiny, a checkpoint, a diffusers folder, its name in --library, or hub:OWNER/NAME."
    return typer.Option("--base", help=help_text, rich_help_panel=panel, show_default=default)


def prediction_option(panel: str) -> OptionInfo:
    """Return the option --prediction for a panel of the command's help."""
    help_text = "What the base's UNet predicts: epsilon (noise) or v (velocity)."
    return typer.Option("--prediction", help=help_text, rich_help_panel=panel, show_default="as its file says")


def zero_snr_option(panel: str) -> OptionInfo:
    """Return the option --zero-snr for a panel of the command's help."""
    help_text, flags = "Whether the base's noise schedule ends in pure noise.", "--zero-snr/--no-zero-snr"
    return typer.Option(flags, help=help_text, rich_help_panel=panel, show_default="as its file says")


PART_HELP = {
    "unet": "Another UNet: a file, folder or base that holds one, or its name.",
    "text": "Other text encoders, twice for an SDXL's two: a file, folder, base or name.",
    "vae": "Another autoencoder: a file, folder, base or name.",
}
TEXT_ENCODER_FLAG = "--text-encoder"
PART_FLAGS = {"unet": ("--unet",), "text": ("--text", TEXT_ENCODER_FLAG), "vae": ("--vae",)}


def part_option(part: str, panel: str, *flags: str) -> OptionInfo:
    """Return the option --unet, --text or --vae for a panel of the command's help.

    Args:
        part: "unet", "text" or "vae".
        panel: The panel.
        flags: Other flags than the part's own. In trainings --text means to train the text encoders.
    """
    flags = flags or PART_FLAGS[part]
    return typer.Option(*flags, help=PART_HELP[part], rich_help_panel=panel, show_default="the base's own")
