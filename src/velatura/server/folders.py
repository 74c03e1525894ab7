"""The server's folders, and the only way from a name in a request to a path: inside one of them, links resolved."""

from __future__ import annotations

import re
from pathlib import Path

from velatura.server.errors import ApiError, not_found
from velatura.server.settings import ServerSettings
from velatura.tiny import bundled_picture_sets, tiny_pictures

NAME_PATTERN = re.compile(r"[^\W_][\w .()+=,@-]{0,99}", re.ASCII)
RESERVED_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows


class Folders:
    """Folders of the server, all resolved; those below `out` are created.

    Attributes:
        out: What the server writes.
        pictures, grids: Pictures made.
        inputs: Images that requests begin from.
        runs: Folders of trainings.
        studies: Folders of studies that compare kinds of overlays.
        models: Files of weights made or pulled.
        datasets: Folders of training pictures.
        library: Folders that are searched for models, those of the settings first.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.out = settings.out.expanduser().resolve()
        self.pictures, self.inputs = self.out / "pictures", self.out / "inputs"
        self.runs, self.models = self.out / "runs", self.out / "models"
        self.studies = self.out / "studies"
        self.datasets = settings.dataset_root.expanduser().resolve()
        for folder in (self.pictures, self.inputs, self.runs, self.models, self.studies, self.datasets):
            folder.mkdir(parents=True, exist_ok=True)
        given = [folder.expanduser().resolve() for folder in settings.library]
        made = [folder for folder in (self.models, self.runs) if not any(map(folder.is_relative_to, given))]
        self.library = tuple(dict.fromkeys([*given, *made]))

    def dataset(self, name: str) -> Path:
        """Return the folder of a dataset, or of a bundled set of pictures if no dataset has its name.

        Raises:
            ApiError: There is none with this name.
        """
        if name in bundled_picture_sets() and not (self.datasets / name).exists():
            return tiny_pictures(name)
        folder = resolve_inside(self.datasets, name, "dataset")
        if not folder.is_dir() or folder.parent != self.datasets:
            raise not_found("dataset")
        return folder

    @property
    def roots(self) -> tuple[Path, ...]:
        """All folders whose files answers may speak of."""
        own = (self.pictures, self.inputs, self.runs, self.models, self.studies, self.datasets, self.out)
        return (*own, *self.library)


def check_name(name: str, field: str = "name") -> str:
    """Return a name for a new file or folder, or refuse one that is not plain.

    Raises:
        ApiError: The name has separators, control characters or the like, or is reserved.
    """
    if not NAME_PATTERN.fullmatch(name) or name.endswith((" ", ".")) or RESERVED_NAME.fullmatch(name):
        raise ApiError(
            422,
            "bad_name",
            "a name has letters, digits, spaces, dots and dashes, 100 at most, and begins with one of "
            "the first two: choose another",
            field,
        )
    return name


def resolve_inside(root: Path, name: str, kind: str = "file") -> Path:
    """Return the path of what exists inside a folder, with links resolved.

    Args:
        root: The folder, resolved.
        name: A relative path from a request.
        kind: What it names, for the message.

    Raises:
        ApiError: Nothing there has this name, or it leads outside the folder.
    """
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # missing, too long, a null byte, links in a circle
        raise not_found(kind) from None
    if path == root or not path.is_relative_to(root):
        raise not_found(kind)
    return path
