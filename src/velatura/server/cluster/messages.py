"""What the server and the actors of a cluster send to one another, and what the server says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from velatura.server.jobs.events import EventType
from velatura.server.jobs.job import ServerJob
from velatura.server.jobs.pictures import StoredPicture


class NodeInfo(NamedTuple):
    """What an actor says of itself once the base is open.

    Attributes:
        host: Name of its machine.
        process: Id of its process there.
        device: Where it computes.
        hashes: Hashes of its base, its text encoders and its autoencoder.
    """

    host: str
    process: int
    device: str
    hashes: tuple[str | None, ...]


class JobAssignment(NamedTuple):
    """A job for an actor.

    Attributes:
        job: The job.
        images: The files of the images that its request refers to.
        made: Its pictures that are there already.
    """

    job: ServerJob
    images: Mapping[str, bytes]
    made: Sequence[StoredPicture]


class JobControl(NamedTuple):
    """What is asked of a running job since the last time.

    Attributes:
        is_cancelled: It is to end.
        skips: It is to leave out the pictures that it paints at this moment.
        is_stopping: The server ends.
    """

    is_cancelled: bool
    skips: bool
    is_stopping: bool


class PictureFile(NamedTuple):
    """A picture that an actor made, and the bytes of its file and of the page beside it."""

    picture: StoredPicture
    content: bytes
    page: bytes | None


class ActorMessage(NamedTuple):
    """What happened to a job in an actor.

    Attributes:
        type: An event of the job, a line for the server's log, "stored" if something of it is stored in a folder that
            all machines share, or "end" behind the last one.
        data: The data of the event.
        file: The picture of the event "picture".
    """

    type: EventType | Literal["server_log", "stored", "end"]
    data: Mapping[str, Any]
    file: PictureFile | None = None


class WorkerInfo(BaseModel):
    """What a worker on the cluster does.

    Attributes:
        host: The machine of its actor; None while the actor starts.
        process: Id of the actor's process there.
        device: Where it computes.
        job: The id of the job that it runs.
    """

    model_config = ConfigDict(frozen=True)

    host: str | None = None
    process: int | None = None
    device: str | None = None
    job: str | None = None
