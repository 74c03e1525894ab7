"""Bases on the Hugging Face hub: what hub:owner/name means, which of its files a base needs, and its cache."""

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

HUB_PREFIX = "hub:"
HUB_URL = "https://huggingface.co"
INDEX_FILE = "model_index.json"
NAME_PATTERN = r"\w(?:[\w-]|\.(?!\.))*"
REFERENCE_PATTERN = re.compile(
    rf"(?P<repo>{NAME_PATTERN}/{NAME_PATTERN})(?:@(?P<revision>{NAME_PATTERN}))?(?:/(?P<file>[^/].*))?"
)
MODEL_FOLDERS = ("unet", "vae", "text_encoder", "text_encoder_2")
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# what is read of a diffusers folder beside its weights: safety checkers, feature extractors and pictures are not
CONFIG_FILES = {
    INDEX_FILE,
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in MODEL_FOLDERS),
    *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in TOKENIZER_FILES),
}
WEIGHTS_STEM = r"(?:diffusion_pytorch_model|pytorch_model|model)"
SHARD_PATTERN = r"-\d+-of-\d+"
CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class HubReference:
    """What hub:owner/name@revision/file speaks of; without a file it is what the repository holds."""

    repo: str
    revision: str = "main"
    file: str | None = None

    @property
    def name(self) -> str:
        """The repository's own name, without its owner's."""
        return self.repo.rpartition("/")[2]

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{HUB_PREFIX}{self.repo}{revision}{'' if self.file is None else f'/{self.file}'}"


def parse_reference(text: str) -> HubReference:
    """Read hub:owner/name, with @revision and /file where they are given."""
    match = REFERENCE_PATTERN.fullmatch(text.removeprefix(HUB_PREFIX))
    if match is None or ".." in PurePosixPath(match["file"] or "").parts:
        raise DownloadFailed(f"{text!r} names nothing on the hub: write hub:owner/name, or hub:owner/name/file")
    return HubReference(match["repo"], match["revision"] or "main", match["file"])


def fetch(text: str, *, endpoint: str | None = None, cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder or file that a reference speaks of, in the hub's own cache, fetched as far as it is missing.

    Of a folder only what a base is read from is fetched, safetensors where there are any. Where the hub cannot be
    reached, the cache alone is asked. endpoint: the hub's address, without it HF_ENDPOINT or the public one.
    """
    reference = parse_reference(text)
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or HUB_URL
    folder = None if cache is None else Path(cache).expanduser()
    try:
        return _HubCache(reference, endpoint, folder, _is_reachable(endpoint)).fetch_base()
    except GatedRepoError:
        page = f"{endpoint}/{reference.repo}"
        raise DownloadFailed(f"{reference} wants its terms accepted: do so at {page}, then set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise DownloadFailed(f"{reference} is not on the hub: check its name; if it is private, set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise DownloadFailed(f"{reference.repo} has no revision {reference.revision!r}: check it") from None
    except RemoteEntryNotFoundError:
        raise DownloadFailed(f"{reference.repo} has no file {reference.file!r}: check its name") from None
    except LocalEntryNotFoundError:
        raise DownloadFailed(
            f"{reference} is not whole in the cache, and {endpoint} not to be reached: go online"
        ) from None
    except HfHubHTTPError as error:
        status = f"{error.response.status_code} {error.response.reason_phrase}"
        raise DownloadFailed(f"{reference} cannot be had, the hub says {status}: try again later") from None


def select_files(files: Collection[str], repository: str, suffixes: tuple[str, ...] = CHECKPOINT_SUFFIXES) -> list[str]:
    """The files of a repository that a base is read from: a diffusers folder's, or the one file with such an ending."""
    if INDEX_FILE in files:
        return sorted(CONFIG_FILES.intersection(files).union(*(_select_weights(files, part) for part in MODEL_FOLDERS)))
    checkpoints = sorted(file for file in files if "/" not in file and file.endswith(suffixes))
    if not checkpoints:
        raise BadFile(
            f"{repository} holds neither a diffusers folder nor a file of weights at its top: choose another, or name a file"
        )
    if len(checkpoints) > 1:
        listed = f"{', '.join(checkpoints[:8])}{', ...' if len(checkpoints) > 8 else ''}"
        raise BadFile(f"{repository} holds several files ({listed}): name one, as in {repository}/{checkpoints[0]}")
    return checkpoints


def _select_weights(files: Collection[str], part: str) -> set[str]:
    """The weights of one model of a folder: safetensors before bin, the full ones before their half, never two."""
    for suffix in ("safetensors", "bin"):
        for variant in ("", r"\.fp16"):
            file_pattern = rf"{part}/{WEIGHTS_STEM}(?:{variant}(?:{SHARD_PATTERN})?|{SHARD_PATTERN}{variant})\.{suffix}"
            index_pattern = rf"{part}/{WEIGHTS_STEM}\.{suffix}\.index{variant}\.json"
            if weights := {file for file in files if re.fullmatch(file_pattern, file)}:
                is_sharded = any(re.search(SHARD_PATTERN, file) for file in weights)
                return weights | {file for file in files if is_sharded and re.fullmatch(index_pattern, file)}
    return set()


@dataclass(frozen=True)
class _HubCache:
    """The hub's cache as far as one reference goes; fetches nothing where the hub cannot be reached."""

    reference: HubReference
    endpoint: str
    folder: Path | None
    is_online: bool

    @property
    def _api(self) -> Any:
        """The hub's own client, whose types are only half told."""
        return HfApi(endpoint=self.endpoint)

    def fetch_base(self) -> Path:
        """The one file that is spoken of, or the folder of a base."""
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
        """The repository's files, or those of them that are kept."""
        if self.is_online:
            return self._api.list_repo_files(self.reference.repo, revision=self.reference.revision)
        snapshot = self._fetch_snapshot([INDEX_FILE])
        return [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*")]


def _is_reachable(endpoint: str) -> bool:
    """Whether the hub answers at all: its client asks for half a minute before it gives up."""
    if is_offline_mode():
        return False
    try:
        httpx2.head(endpoint, timeout=5)
    except httpx2.TransportError:
        return False
    return True
