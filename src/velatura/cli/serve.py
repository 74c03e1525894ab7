"""Run `velatura serve`."""

import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from secrets import token_urlsafe
from typing import Annotated

import typer

from velatura.cli.options import ray_option
from velatura.cli.screen import print_error, say
from velatura.errors import BadSettings

NEEDED_PACKAGES = ("fastapi", "uvicorn", "python_multipart")
EVERYWHERE = "0.0.0.0"
ACCESS_PANEL, FOLDER_PANEL, BASE_PANEL = "Who may use it", "Folders", "Base"

BaseName = Annotated[
    str,
    typer.Option("--base", help="tiny, a checkpoint, a folder, or its name in --library.", rich_help_panel=BASE_PANEL),
]
Dtype = Annotated[str, typer.Option(help="float32, float16, bfloat16.", rich_help_panel=BASE_PANEL)]
Device = Annotated[str, typer.Option(help="cuda, mps, cpu.", rich_help_panel=BASE_PANEL)]
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep on the device only what computes.", rich_help_panel=BASE_PANEL)
]
Batch = Annotated[
    int | None,
    typer.Option(
        min=1, max=64, help="Pictures made together.", rich_help_panel=BASE_PANEL, show_default="1 on a CPU, else 8"
    ),
]
LibraryFolders = Annotated[
    list[Path] | None,
    typer.Option("--library", help="Folders of models.", rich_help_panel=FOLDER_PANEL, show_default="this folder"),
]
Out = Annotated[
    Path, typer.Option(help="For jobs, pictures, runs, datasets and new models.", rich_help_panel=FOLDER_PANEL)
]
Datasets = Annotated[
    Path | None,
    typer.Option(help="Folder of dataset folders.", rich_help_panel=FOLDER_PANEL, show_default="datasets/ in --out"),
]
Host = Annotated[
    str | None,
    typer.Option(help="Address to listen at.", rich_help_panel=ACCESS_PANEL, show_default="this machine's own"),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.", rich_help_panel=ACCESS_PANEL)]
Listen = Annotated[
    bool,
    typer.Option("--listen", help="Let other machines in, with a password or a token.", rich_help_panel=ACCESS_PANEL),
]
Auth = Annotated[
    str | None,
    typer.Option(
        metavar="USER:PASSWORD",
        envvar="VELATURA_AUTH",
        help="What a browser or program must give.",
        rich_help_panel=ACCESS_PANEL,
        show_default="nothing; a token if --listen",
    ),
]
Origins = Annotated[
    list[str] | None,
    typer.Option(
        "--origin",
        help="Web pages of this origin may use it, and its host may be the server's name.",
        rich_help_panel=ACCESS_PANEL,
        show_default="none",
    ),
]
ApiOnly = Annotated[bool, typer.Option("--api-only", help="Serve no page.", rich_help_panel=ACCESS_PANEL)]


def serve(
    *,
    base: BaseName = "tiny",
    dtype: Dtype = "auto",
    device: Device = "auto",
    offload: Offload = False,
    batch: Batch = None,
    ray: Annotated[str | None, ray_option("Paint and compare", BASE_PANEL)] = None,
    library: LibraryFolders = None,
    out: Out = Path("output"),
    datasets: Datasets = None,
    host: Host = None,
    port: Port = 7860,
    listen: Listen = False,
    auth: Auth = None,
    origin: Origins = None,
    api_only: ApiOnly = False,
) -> None:
    """Serve painting and training over HTTP; Ctrl-C ends it, and the next start goes on with its jobs.

    velatura serve

    velatura serve --base sd15 --library models/ --port 7860

    velatura serve --base sd15 --library /shared/models --out /shared/output --ray auto

    velatura serve --listen --auth me:secret --origin http://example.org:8000
    """
    missing = [name.replace("_", "-") for name in NEEDED_PACKAGES if find_spec(name) is None]
    if missing:
        raise BadSettings(f"the server needs {', '.join(missing)}: pip install velatura[serve]")
    from velatura.server.run import serve as run_server
    from velatura.server.settings import ServerSettings

    settings = ServerSettings.of(
        base=base,
        dtype=dtype,
        device=device,
        offload=offload,
        batch=batch,
        library=tuple(library) if library else None,
        out=out,
        datasets=datasets,
        host=host or (EVERYWHERE if listen else None),
        port=port,
        listen=listen,
        auth=auth,
        token=token_urlsafe(24) if listen and auth is None else None,
        origins=tuple(origin or ()),
        api_only=api_only,
    )
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)

    def say_ready(address: str) -> None:
        say(f"velatura serves at {address}")
        sys.stdout.flush()

    run_server(settings, say_ready, ray=ray)
    print_error("ended; jobs that wait, and the one that ran, go on at the next start")
