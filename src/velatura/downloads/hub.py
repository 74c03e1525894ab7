"""What the Hugging Face hub says of a repository: which files to fetch, how large they are, and their hashes."""

from __future__ import annotations

from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from velatura.downloads.destination import MODEL_ENDINGS
from velatura.downloads.partial_file import Digest
from velatura.downloads.services import Service
from velatura.downloads.transfer import RemoteFile
from velatura.downloads.web_client import WebClient
from velatura.errors import DownloadFailed, UnknownName
from velatura.formats.hub import HubReference, select_files


class _HubAnswer(BaseModel):
    """A part of an answer, of which only some fields are read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _LfsPointer(_HubAnswer):
    sha256: str
    size: int = Field(ge=0)


class _HubFile(_HubAnswer):
    rfilename: str
    size: int | None = Field(default=None, ge=0)
    blobId: str | None = None  # noqa: N815 - fields are called as the hub calls them
    lfs: _LfsPointer | None = None


class _HubRepository(_HubAnswer):
    sha: str = Field(pattern=r"^[0-9a-f]{40}$")
    siblings: tuple[_HubFile, ...] = ()


def find(web: WebClient, service: Service, reference: HubReference) -> dict[str, RemoteFile]:
    """The files to fetch, by their paths in the repository, all of one commit."""
    revision = quote(reference.revision, safe="")
    answer = web.json(f"{service.root}/api/models/{reference.repo}/revision/{revision}?blobs=true")
    try:
        repository = _HubRepository.model_validate(answer)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DownloadFailed(f"the hub's answer has no {where} as it should: try again later") from None
    files = {file.rfilename: file for file in repository.siblings}
    root = f"{service.root}/{reference.repo}/resolve/{repository.sha}"
    return {path: _remote_file(files[path], root) for path in _paths(files, reference)}


def _paths(files: dict[str, _HubFile], reference: HubReference) -> list[str]:
    if reference.file is None:
        return select_files(files, str(reference), MODEL_ENDINGS)
    if reference.file not in files:
        raise UnknownName.with_suggestions(
            "file", reference.file, files, str(HubReference(reference.repo, reference.revision))
        )
    return [reference.file]


def _remote_file(file: _HubFile, root: str) -> RemoteFile:
    size = file.lfs.size if file.lfs else file.size
    digest = Digest("sha256", file.lfs.sha256) if file.lfs else Digest("git", file.blobId) if file.blobId else None
    return RemoteFile(f"{root}/{quote(file.rfilename)}", name=file.rfilename, size=size, digest=digest)
