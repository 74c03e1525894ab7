"""Settings of the server: folders, address, who may use it, and limits."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from velatura.errors import BadSettings, explain_validation_error

MIB = 2**20
LOOPBACK_NAMES = ("localhost", "ip6-localhost")


class ServerSettings(BaseModel):
    """Settings of the server; `velatura serve` has an option for most of them.

    Raises:
        BadSettings: A setting is unknown or out of range, or they contradict one another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str = Field(default="tiny", description="base: tiny, a checkpoint, a diffusers folder, or a library's name")
    dtype: str = Field(default="auto", description="the base's precision")
    device: str = Field(default="auto", description="where it computes: cuda, mps, cpu")
    offload: bool = Field(default=False, description="keep on the device only what computes")
    library: tuple[Path, ...] = Field(default=(Path(),), description="folders of models")
    out: Path = Field(default=Path("output"), description="folder of jobs, pictures, runs, datasets and models made")
    datasets: Path | None = Field(default=None, description="folder of dataset folders; none: datasets/ in out")
    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen at")
    port: int = Field(default=7860, ge=0, le=65535, description="port to listen at; 0: a free one")
    listen: bool = Field(default=False, description="let other machines in")
    auth: SecretStr | None = Field(default=None, description="user:password that a request must have")
    token: SecretStr | None = Field(default=None, description="token that a request must have")
    origins: tuple[str, ...] = Field(default=(), description="other web origins that may use the server")
    api_only: bool = Field(default=False, description="serve no page")
    batch: int | None = Field(
        default=None, ge=1, le=64, description="pictures that are made together; none: 1 on a CPU, 8 elsewhere"
    )
    max_body_bytes: int = Field(default=64 * MIB, ge=1024, description="bytes of a request that is not an upload")
    max_upload_bytes: int = Field(default=2048 * MIB, ge=1024, description="bytes of an upload")
    max_queued_jobs: int = Field(default=200, ge=1, description="jobs that may wait at once")
    max_pictures: int = Field(default=100, ge=1, description="pictures of a job")
    max_picture_pixels: int = Field(default=2048 * 2048, ge=64, description="pixels of a picture that is made")

    @classmethod
    def of(cls, **fields: object) -> Self:
        """Build settings from fields; None means a setting's default.

        Raises:
            BadSettings: A field is unknown or out of range, or they contradict one another.
        """
        try:
            return cls.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            descriptions = {name: field.description for name, field in cls.model_fields.items()}
            raise BadSettings(explain_validation_error(error, "server", descriptions)) from None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.auth is not None and not all(self.auth.get_secret_value().partition(":")):
            raise BadSettings("the server's auth has no user and password: write it as user:password")
        if not self.listen and not is_loopback(self.host):
            raise BadSettings(
                f"the host {self.host} lets other machines in: add --listen if they may, or use 127.0.0.1"
            )
        if self.listen and self.auth is None and self.token is None:
            raise BadSettings(
                "without a password other machines could do anything here: add --auth user:password, or a token"
            )
        for origin in self.origins:
            parts = urlsplit(origin)
            if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path or parts.query:
                raise BadSettings(f"{origin} is not an origin: write scheme, host and port, http://example.org:8000")
        return self

    @property
    def dataset_root(self) -> Path:
        """Return the folder of the dataset folders."""
        return self.datasets or self.out / "datasets"


def is_loopback(host: str) -> bool:
    """Return True for a name or address that only this machine reaches."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK_NAMES


def is_address(host: str) -> bool:
    """Return True for a literal IP address; only a name can be rebound by DNS to another machine."""
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
