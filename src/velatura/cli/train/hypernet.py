"""Run `velatura train hypernet`."""

from collections.abc import Mapping
from typing import Annotated, TypeVar

import velatura
from velatura.cli.train.options import OVERLAY_PANEL, Folder, TrainOptions, option, train_options
from velatura.cli.train.session import TrainSession
from velatura.cli.train.start import Start, open_start
from velatura.errors import BadOverlay

Number = TypeVar("Number", int, float)

Layers = Annotated[str, option("Widths of its layers, in widths of the context.", OVERLAY_PANEL)]
Activation = Annotated[str, option("Between its layers: relu, mish, linear (A1111's own default), ...", OVERLAY_PANEL)]
LayerNorm = Annotated[bool, option("Normalise after each layer.", OVERLAY_PANEL, "--layer-norm")]
Init = Annotated[str, option("How its weights begin: normal, xavier_normal, kaiming_uniform, ...", OVERLAY_PANEL)]
ActivateOutput = Annotated[bool, option("Activate its last layer too.", OVERLAY_PANEL, "--activate-output")]
Dropout = Annotated[float, option("Share of hidden features that are dropped.", OVERLAY_PANEL)]
LastLayerDropout = Annotated[
    bool,
    option(
        "Drop features of the last hidden layer too.",
        OVERLAY_PANEL,
        "--last-layer-dropout/--no-last-layer-dropout",
    ),
]
Widths = Annotated[
    str | None, option("Widths of the contexts it changes: 768 or 320,640.", OVERLAY_PANEL, default="all of the base")
]
DEFAULT_STRUCTURE: Mapping[str, object] = {
    "layers": "1,2,1",
    "activation": "relu",
    "layer_norm": False,
    "activate_output": False,
    "dropout": 0.0,
    "last_layer_dropout": True,
    "init": "normal",
    "widths": None,
}


@train_options
def train_hypernet(
    folder: Folder,
    *,
    options: TrainOptions,
    layers: Layers = "1,2,1",
    activation: Activation = "relu",
    layer_norm: LayerNorm = False,
    activate_output: ActivateOutput = False,
    dropout: Dropout = 0.0,
    last_layer_dropout: LastLayerDropout = True,
    init: Init = "normal",
    widths: Widths = None,
    start: Start = None,
) -> None:
    """Train a hypernetwork: a small network in front of every K and V of the base, good at styles.

    velatura train hypernet photos/ --name inca --steps 300 --out runs/inca

    velatura train hypernet photos/ --base sd15/ --layers 1,2,1 --activation mish --rate "5e-5:100, 5e-6" --dry-run

    velatura train hypernet more-photos/ --start inca.pt --patience 5 --out runs/inca-2
    """
    session = TrainSession.prepare("hypernet", folder, options)
    if start is not None:
        given_structure = {
            "layers": layers,
            "activation": activation,
            "layer_norm": layer_norm,
            "activate_output": activate_output,
            "dropout": dropout,
            "last_layer_dropout": last_layer_dropout,
            "init": init,
            "widths": widths,
        }
        overlay = open_start(start, velatura.Hypernetwork, session.name, given_structure, DEFAULT_STRUCTURE)
    else:
        overlay = velatura.Hypernetwork.for_base(
            session.base,
            layers=_parse_numbers("layers", layers, float, "1,2,1"),
            activation=activation,
            layer_norm=layer_norm,
            activate_output=activate_output,
            dropout=dropout,
            last_layer_dropout=last_layer_dropout,
            init=init,
            widths=None if widths is None else _parse_numbers("widths", widths, int, "768,320"),
            seed=session.plan.seed,
            name=session.name,
        )
    if options.dry_run:  # a run says the same where it attaches
        from velatura.overlays.target import Target

        overlay.check_compatible(Target.from_model(session.base))
    session.run(overlay)


def _parse_numbers(option_name: str, text: str, number_type: type[Number], example: str) -> tuple[Number, ...]:
    try:
        return tuple(number_type(part) for part in text.split(","))
    except ValueError:
        raise BadOverlay(f'the {option_name} "{text}" are not a list of numbers: write "{example}"') from None
