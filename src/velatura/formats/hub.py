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

PREFIX = "hub:"
PUBLIC = "https://huggingface.co"
INDEX = "model_index.json"
NAME = r"\w(?:[\w-]|\.(?!\.))*"
SHAPE = re.compile(rf"(?P<repo>{NAME}/{NAME})(?:@(?P<revision>{NAME}))?(?:/(?P<file>[^/].*))?")
MODELS = ("unet", "vae", "text_encoder", "text_encoder_2")
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# what is read of a diffusers folder beside its weights: safety checkers, feature extractors and pictures are not
TABLES = {
    INDEX,
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in MODELS),
    *(f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in TOKENIZER_FILES),
}
STEM = r"(?:diffusion_pytorch_model|pytorch_model|model)"
SHARD = r"-\d+-of-\d+"
CHECKPOINTS = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class Reference:
    """What hub:owner/name@revision/file speaks of; without a file it is what the repository holds."""

    repo: str
    revision: str = "main"
    file: str | None = None

    @property
    def name(self) -> str:
        """The repository's own name, without its owner's."""
        return self.repo.rpartition("/")[2]

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{PREFIX}{self.repo}{at}{'' if self.file is None else f'/{self.file}'}"


def read_reference(text: str) -> Reference:
    """Read hub:owner/name, with @revision and /file where they are given."""
    found = SHAPE.fullmatch(text.removeprefix(PREFIX))
    if found is None or ".." in PurePosixPath(found["file"] or "").parts:
        raise DownloadFailed(f"{text!r} names nothing on the hub: write hub:owner/name, or hub:owner/name/file")
    return Reference(found["repo"], found["revision"] or "main", found["file"])


def fetched(text: str, *, endpoint: str | None = None, cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder or file that a reference speaks of, in the hub's own cache, fetched as far as it is missing.

    Of a folder only what a base is read from is fetched, safetensors where there are any. Where the hub cannot be
    reached, the cache alone is asked. endpoint: the hub's address, without it HF_ENDPOINT or the public one.
    """
    reference = read_reference(text)
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or PUBLIC
    folder = None if cache is None else Path(cache).expanduser()
    try:
        return _Cache(reference, endpoint, folder, _is_reachable(endpoint)).base()
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
        said = f"{error.response.status_code} {error.response.reason_phrase}"
        raise DownloadFailed(f"{reference} cannot be had, the hub says {said}: try again later") from None


def needed(files: Collection[str], name: str, endings: tuple[str, ...] = CHECKPOINTS) -> list[str]:
    """The files of a repository that a base is read from: a diffusers folder's, or the one file with such an ending."""
    if INDEX in files:
        return sorted(TABLES.intersection(files).union(*(_weights(files, part) for part in MODELS)))
    found = sorted(each for each in files if "/" not in each and each.endswith(endings))
    if not found:
        raise BadFile(
            f"{name} holds neither a diffusers folder nor a file of weights at its top: choose another, or name a file"
        )
    if len(found) > 1:
        listed = f"{', '.join(found[:8])}{', ...' if len(found) > 8 else ''}"
        raise BadFile(f"{name} holds several files ({listed}): name one, as in {name}/{found[0]}")
    return found


def _weights(files: Collection[str], part: str) -> set[str]:
    """The weights of one model of a folder: safetensors before bin, the full ones before their half, never two."""
    for ending in ("safetensors", "bin"):
        for variant in ("", r"\.fp16"):
            whole = rf"{part}/{STEM}(?:{variant}(?:{SHARD})?|{SHARD}{variant})\.{ending}"
            index = rf"{part}/{STEM}\.{ending}\.index{variant}\.json"
            if found := {each for each in files if re.fullmatch(whole, each)}:
                sharded = any(re.search(SHARD, each) for each in found)
                return found | {each for each in files if sharded and re.fullmatch(index, each)}
    return set()


@dataclass(frozen=True)
class _Cache:
    """The hub's cache as far as one reference goes; fetches nothing where the hub cannot be reached."""

    reference: Reference
    endpoint: str
    folder: Path | None
    is_online: bool

    @property
    def _api(self) -> Any:
        """The hub's own client, whose types are only half told."""
        return HfApi(endpoint=self.endpoint)

    def base(self) -> Path:
        """The one file that is spoken of, or the folder of a base."""
        if self.reference.file is not None:
            return self._file(self.reference.file)
        wanted = needed(self._listed(), str(self.reference))
        return self._snapshot(wanted) if INDEX in wanted else self._file(wanted[0])

    def _file(self, name: str) -> Path:
        where = self._api.hf_hub_download(
            self.reference.repo,
            name,
            revision=self.reference.revision,
            cache_dir=self.folder,
            local_files_only=not self.is_online,
        )
        return Path(where)

    def _snapshot(self, wanted: list[str]) -> Path:
        where = self._api.snapshot_download(
            self.reference.repo,
            revision=self.reference.revision,
            cache_dir=self.folder,
            allow_patterns=wanted,
            local_files_only=not self.is_online,
        )
        return Path(where)

    def _listed(self) -> list[str]:
        """The repository's files, or those of them that are kept."""
        if self.is_online:
            return self._api.list_repo_files(self.reference.repo, revision=self.reference.revision)
        kept = self._snapshot([INDEX])
        return [path.relative_to(kept).as_posix() for path in kept.rglob("*")]


def _is_reachable(endpoint: str) -> bool:
    """Whether the hub answers at all: its client asks for half a minute before it gives up."""
    if is_offline_mode():
        return False
    try:
        httpx2.head(endpoint, timeout=5)
    except httpx2.TransportError:
        return False
    return True
