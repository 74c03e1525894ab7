"""What a machine of the cluster has of the server: its folders, its settings without secrets, its version."""

from __future__ import annotations

import socket
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

from velatura.compare.cluster import check_on_this_machine
from velatura.errors import BadDataset, BadSettings
from velatura.files import atomic_write
from velatura.sampling.named_bases import is_path
from velatura.server.folders import Folders
from velatura.server.settings import ServerSettings

TOKEN_FILE = ".velatura.cluster"  # in the output folder, by which a machine knows that it sees the server's


class NodeSetup(NamedTuple):
    """What an actor is set up with.

    Attributes:
        settings: The server's settings, without password and token; its base is a name or an absolute path.
        folders: The server's folders.
        token: What the file TOKEN_FILE in the output folder holds.
        version: The server's version of velatura.
    """

    settings: ServerSettings
    folders: Folders
    token: str
    version: str

    @classmethod
    def of_server(cls, settings: ServerSettings, folders: Folders) -> NodeSetup:
        """Return the setup for the actors of a server, and write the file by which they know its output folder."""
        token = token_hex(16)
        with atomic_write(folders.out / TOKEN_FILE) as temporary:
            temporary.write_text(token, "utf-8")
        base = settings.base
        if is_path(base) and not base.startswith("hub:"):
            base = str(Path(base).expanduser().absolute())
        public = settings.model_copy(
            update={
                "base": base,
                "device": "cpu" if settings.device == "cpu" else "auto",  # Ray chooses which GPU an actor sees
                "auth": None,
                "token": None,
                "listen": False,
                "host": "127.0.0.1",
            }
        )
        return cls(public, folders, token, version("velatura"))

    def check(self) -> None:
        """Refuse a machine that does not see the server's folders, or has another version.

        Raises:
            BadSettings: Another version of velatura is installed here.
            BadDataset: A folder is not on this machine, or is another one than the server's.
        """
        host = socket.gethostname()
        if version("velatura") != self.version:
            raise BadSettings(
                f"{host} has velatura {version('velatura')}, and the server has {self.version}: install the same "
                "version on every machine of the cluster"
            )
        folders = self.folders
        check_on_this_machine([folders.out, *folders.library, folders.runs, folders.studies, folders.datasets])
        path = folders.out / TOKEN_FILE
        if not path.is_file() or path.read_text("utf-8") != self.token:
            raise BadDataset(
                f"{folders.out} on {host} is another folder than the server's: on every machine of the cluster it must "
                "be the same folder under the same path, as on a network drive"
            )


class NodeFolders(Folders):
    """The server's folders as an actor has them: it writes pictures and images into a folder of its own.

    Args:
        server: The server's folders.
        scratch: The actor's own folder.
    """

    def __init__(self, server: Folders, scratch: Path) -> None:
        self.out, self.runs, self.models = server.out, server.runs, server.models
        self.studies, self.datasets, self.library = server.studies, server.datasets, server.library
        self.pictures, self.inputs = scratch / "pictures", scratch / "inputs"
        for folder in (self.pictures, self.inputs):
            folder.mkdir()
