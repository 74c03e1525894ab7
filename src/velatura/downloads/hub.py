"""API of the Hugging Face hub: the files to download of a repository, with their sizes and hashes."""

from __future__ import annotations

from urllib.parse import quote

from pydantic import Field

from velatura.downloads.destination import MODEL_ENDINGS
from velatura.downloads.partial_file import Digest
from velatura.downloads.services import Service, ServiceAnswer
from velatura.downloads.transfer import RemoteFile
from velatura.downloads.web_client import WebClient
from velatura.errors import UnknownName
from velatura.formats.hub import HubReference, select_files


class _LfsPointer(ServiceAnswer):
    sha256: str
    size: int = Field(ge=0)


class _HubFile(ServiceAnswer):
    rfilename: str
    size: int | None = Field(default=None, ge=0)
    blobId: str | None = None  # noqa: N815 - fields have the hub's names
    lfs: _LfsPointer | None = None


class _HubRepository(ServiceAnswer):
    sha: str = Field(pattern=r"^[0-9a-f]{40}$")
    siblings: tuple[_HubFile, ...] = ()


def find(web: WebClient, service: Service, reference: HubReference) -> dict[str, RemoteFile]:
    """Find the files to download: one file, or those of a diffusers folder that are needed.

    Args:
        web: Client for the requests.
        service: The hub, or a mirror of it.
        reference: Repository, revision and optionally a file.

    Returns:
        Files by their paths in the repository, all of the same commit.

    Raises:
        UnknownName: if the repository does not contain the file.
        BadFile: if it is not clear which file to download.
    """
    revision = quote(reference.revision, safe="")
    answer = web.json(f"{service.root}/api/models/{reference.repo}/revision/{revision}?blobs=true")
    repository = _HubRepository.parse(answer, "the hub")
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
    url = f"{root}/{quote(file.rfilename)}"
    if file.lfs:
        digest = Digest("sha256", file.lfs.sha256)
        return RemoteFile(url, name=file.rfilename, size=file.lfs.size, digest=digest)
    git_digest = Digest("git", file.blobId) if file.blobId else None
    return RemoteFile(url, name=file.rfilename, size=file.size, digest=git_digest)
