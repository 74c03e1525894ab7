"""Bases on the Hugging Face hub: parse hub:owner/name, choose the files that a base needs, and fetch them once."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from velatura.errors import BadFile, DownloadFailed
from velatura.formats.checkpoints import INDEX_FILE, SHARD_NUMBER, VARIANTS, WEIGHTS_SUFFIXES

HUB_PREFIX = "hub:"
HUB_URL = "https://huggingface.co"
NAME_PATTERN = r"\w(?:[\w-]|\.(?!\.))*"
REFERENCE_PATTERN = re.compile(
    rf"(?P<repo>{NAME_PATTERN}/{NAME_PATTERN})(?:@(?P<revision>{NAME_PATTERN}))?(?:/(?P<file>[^/].*))?"
)
MODEL_FOLDERS = ("unet", "vae", "text_encoder", "text_encoder_2")
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# The files of a diffusers folder that are read beside its weights; not the safety checker or the feature extractor
CONFIG_FILES = {
    INDEX_FILE,
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in MODEL_FOLDERS),
    *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in TOKENIZER_FILES),
}
WEIGHTS_STEM = r"(?:diffusion_pytorch_model|pytorch_model|model)"
CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class HubReference:
    """A reference in the form hub:owner/name@revision/file.

    Attributes:
        repo: owner/name.
        revision: Branch, tag or commit.
        file: Path of one file; None means the base that the repository holds.
    """

    repo: str
    revision: str = "main"
    file: str | None = None

    @property
    def name(self) -> str:
        """Return the name of the repository without its owner."""
        return self.repo.rpartition("/")[2]

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{HUB_PREFIX}{self.repo}{revision}{'' if self.file is None else f'/{self.file}'}"


def parse_reference(text: str) -> HubReference:
    """Parse hub:owner/name, with an optional @revision and /file.

    Raises:
        DownloadFailed: The text has another form, or a file outside the repository.
    """
    match = REFERENCE_PATTERN.fullmatch(text.removeprefix(HUB_PREFIX))
    if match is None or ".." in PurePosixPath(match["file"] or "").parts:
        raise DownloadFailed(f"{text!r} is not a reference to the hub: write hub:owner/name, or hub:owner/name/file")
    return HubReference(match["repo"], match["revision"] or "main", match["file"])


def fetch(text: str, *, endpoint: str | None = None, cache: str | os.PathLike[str] | None = None) -> Path:
    """Fetch a base from the hub into the hub's own cache and return its local path.

    Files in the cache are not fetched again, and if the hub cannot be reached only the cache is used. Of a diffusers
    folder only the files that a base is read from are fetched, safetensors rather than torch files.

    Args:
        text: A reference such as hub:owner/name.
        endpoint: Address of the hub; the default is HF_ENDPOINT, or else the public hub.
        cache: Folder of the cache; the default is huggingface_hub's.

    Returns:
        The path of one checkpoint, or of a diffusers folder.

    Raises:
        DownloadFailed: The reference is wrong, the hub refuses or lacks it, or it is neither cached nor reachable.
        BadFile: The repository holds no base, or several checkpoints.
    """
    reference = parse_reference(text)
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or HUB_URL
    folder = None if cache is None else Path(cache).expanduser()
    try:
        return _HubCache(reference, endpoint, folder, _is_reachable(endpoint)).fetch_base()
    except GatedRepoError:
        page = f"{endpoint}/{reference.repo}"
        raise DownloadFailed(
            f"{reference} asks you to accept its terms: accept them at {page}, then set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise DownloadFailed(f"{reference} is not on the hub: check its name; if it is private, set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise DownloadFailed(f"{reference.repo} has no revision {reference.revision!r}: check it") from None
    except RemoteEntryNotFoundError:
        raise DownloadFailed(f"{reference.repo} has no file {reference.file!r}: check its name") from None
    except LocalEntryNotFoundError:
        raise DownloadFailed(
            f"{reference} is not complete in the cache, and {endpoint} cannot be reached: go online"
        ) from None
    except HfHubHTTPError as error:
        status = f"{error.response.status_code} {error.response.reason_phrase}"
        raise DownloadFailed(f"{reference} cannot be fetched, the hub says {status}: try again later") from None


def select_files(files: Collection[str], repository: str, suffixes: tuple[str, ...] = CHECKPOINT_SUFFIXES) -> list[str]:
    """Select the files of a repository that a base is read from.

    Args:
        files: Paths of all files, with "/".
        repository: Name of the repository, for messages.
        suffixes: Endings of files of weights.

    Returns:
        The configurations, tokenizers and weights of a diffusers folder, or else the only file of weights.

    Raises:
        BadFile: There is neither, or several files of weights.
    """
    if INDEX_FILE in files:
        return sorted(CONFIG_FILES.intersection(files).union(*(_select_weights(files, part) for part in MODEL_FOLDERS)))
    checkpoints = sorted(file for file in files if "/" not in file and file.endswith(suffixes))
    if not checkpoints:
        raise BadFile(
            f"{repository} holds neither a diffusers folder nor a file of weights at its top level: choose another "
            "repository, or name a file"
        )
    if len(checkpoints) > 1:
        listed = f"{', '.join(checkpoints[:8])}{', ...' if len(checkpoints) > 8 else ''}"
        raise BadFile(f"{repository} holds several files ({listed}): name one, as in {repository}/{checkpoints[0]}")
    return checkpoints


def _select_weights(files: Collection[str], part: str) -> set[str]:
    """Select the weights of one model in a folder, in the order of `folder_weights`: never two copies."""
    for suffix in WEIGHTS_SUFFIXES:
        for variant in map(re.escape, VARIANTS):
            file_pattern = rf"{part}/{WEIGHTS_STEM}(?:{variant}(?:{SHARD_NUMBER})?|{SHARD_NUMBER}{variant})\.{suffix}"
            index_pattern = rf"{part}/{WEIGHTS_STEM}\.{suffix}\.index{variant}\.json"
            weights = {file for file in files if re.fullmatch(file_pattern, file)}
            if weights:
                is_sharded = any(re.search(SHARD_NUMBER, file) for file in weights)
                return weights | {file for file in files if is_sharded and re.fullmatch(index_pattern, file)}
    return set()


@dataclass(frozen=True)
class _HubCache:
    """Cache of the hub for one reference; fetches nothing if the hub cannot be reached."""

    reference: HubReference
    endpoint: str
    folder: Path | None
    is_online: bool

    @property
    def _api(self) -> Any:
        """Return the hub's own client, as Any because its types are incomplete."""
        return HfApi(endpoint=self.endpoint)

    def fetch_base(self) -> Path:
        """Fetch the file of the reference, or else what a base is read from, and return its path."""
        if self.reference.file is not None:
            return self._fetch_file(self.reference.file)
        files = select_files(self._list_files(), str(self.reference))
        return self._fetch_snapshot(files) if INDEX_FILE in files else self._fetch_file(files[0])

    def _fetch_file(self, name: str) -> Path:
        local_path = self._api.hf_hub_download(
            self.reference.repo,
            name,
            revision=self.reference.revision,
            cache_dir=self.folder,
            local_files_only=not self.is_online,
        )
        return Path(local_path)

    def _fetch_snapshot(self, patterns: list[str]) -> Path:
        local_path = self._api.snapshot_download(
            self.reference.repo,
            revision=self.reference.revision,
            cache_dir=self.folder,
            allow_patterns=patterns,
            local_files_only=not self.is_online,
        )
        return Path(local_path)

    def _list_files(self) -> list[str]:
        """Return the paths of the repository's files; without the hub, of those in the cache."""
        if self.is_online:
            return self._api.list_repo_files(self.reference.repo, revision=self.reference.revision)
        snapshot = self._fetch_snapshot([INDEX_FILE])
        return [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*")]


def _is_reachable(endpoint: str) -> bool:
    """Return True if the hub answers within five seconds; its own client tries for half a minute."""
    if is_offline_mode():
        return False
    try:
        httpx2.head(endpoint, timeout=5)
    except httpx2.TransportError:
        return False
    return True
