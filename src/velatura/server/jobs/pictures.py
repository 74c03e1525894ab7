"""Pictures made: rows in the database with their recipes, and files named by us."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from velatura.files import atomic_write
from velatura.server.folders import Folders
from velatura.server.jobs.database import Database
from velatura.server.jobs.job import ServerJob

if TYPE_CHECKING:
    from PIL.Image import Image

    from velatura.sampling.generate import Picture
    from velatura.sampling.recipe.recipe import Recipe

PAGE_ENDING = ".html"  # of the page beside a grid
LIKE_ESCAPES = str.maketrans({"\\": r"\\", "%": r"\%", "_": r"\_"})


class StoredPicture(BaseModel):
    """A picture of the history.

    Attributes:
        id: Its name in URLs.
        job: The job that made it.
        position: Its place among the job's pictures, from 0.
        file: Its path below the folder of pictures.
        created: Seconds since 1970.
        width, height: Pixels.
        recipe: The recipe that makes it again.
        effects: What each overlay of it changed, in words.
    """

    model_config = ConfigDict(frozen=True)

    id: int
    job: str
    position: int
    file: str
    created: float
    width: int
    height: int
    recipe: dict[str, Any]
    effects: tuple[str, ...] = ()


class PictureStore:
    """History of pictures: rows of the database and their files."""

    def __init__(self, database: Database, folders: Folders) -> None:
        self._database, self._folder = database, folders.pictures

    def save(self, picture: Picture, job: ServerJob, position: int, ending: str = ".png") -> StoredPicture:
        """Write a picture with its recipe inside, and remember it.

        Args:
            picture: The picture.
            job: The job that made it.
            position: The place among the job's pictures. A second picture at the same place replaces the first.
            ending: The file's ending, as ".png".
        """
        effects = [str(effect) for effect in picture.effects]
        return self.save_image(picture.image, picture.recipe, job, position, ending=ending, effects=effects)

    def save_image(
        self,
        image: Image,
        recipe: Recipe,
        job: ServerJob,
        position: int,
        *,
        ending: str = ".png",
        infotext: str | None = None,
        effects: Sequence[str] = (),
    ) -> StoredPicture:
        """Write an image with a recipe inside, or with another infotext, and remember it; see `save`."""
        from velatura.sampling.recipe.metadata import save_with_infotext

        day = datetime.fromtimestamp(job.created, UTC).strftime("%Y-%m-%d")
        file = f"{day}/{job.number:06}-{position:03}{ending}"
        save_with_infotext(image, self._folder / file, recipe.infotext() if infotext is None else infotext)
        return self.insert(
            StoredPicture(
                id=0,
                job=job.id,
                position=position,
                file=file,
                created=time.time(),
                width=image.width,
                height=image.height,
                recipe=recipe.model_dump(mode="json", exclude_defaults=True),
                effects=tuple(effects),
            )
        )

    def save_file(self, picture: StoredPicture, content: bytes, page: bytes | None = None) -> StoredPicture:
        """Write the file of a picture that another machine made, and remember it.

        Args:
            picture: The picture as it was stored there; its id is another one here.
            content: The bytes of its file.
            page: The bytes of the page that lies beside a grid.
        """
        path = self.path(picture)
        files = {path: content} if page is None else {path: content, path.with_suffix(PAGE_ENDING): page}
        for target, data in files.items():
            with atomic_write(target) as temporary:
                temporary.write_bytes(data)
        return self.insert(picture)

    def insert(self, picture: StoredPicture) -> StoredPicture:
        """Remember a picture whose file is there, and return it with its id here."""
        recipe = picture.recipe
        self._database.change(
            "INSERT INTO pictures (job, position, file, created, width, height, seed, prompt, base, recipe, effects) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job, position) "
            "DO UPDATE SET recipe = excluded.recipe, effects = excluded.effects",
            (
                picture.job,
                picture.position,
                picture.file,
                picture.created,
                picture.width,
                picture.height,
                recipe.get("seed"),
                recipe.get("prompt", ""),
                recipe.get("base"),
                json.dumps(recipe),
                json.dumps(picture.effects),
            ),
        )
        return next(stored for stored in self.of_job(picture.job) if stored.position == picture.position)

    def of_job(self, job: str) -> list[StoredPicture]:
        """Return the pictures of a job, in their order."""
        rows = self._database.rows("SELECT * FROM pictures WHERE job = ? ORDER BY position", (job,))
        return [_to_picture(row) for row in rows]

    def get(self, picture_id: int) -> StoredPicture | None:
        """Return a picture, None if there is none with this id."""
        rows = self._database.rows("SELECT * FROM pictures WHERE id = ?", (picture_id,))
        return _to_picture(rows[0]) if rows else None

    def list(
        self,
        *,
        search: str | None = None,
        base: str | None = None,
        seed: int | None = None,
        job: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[StoredPicture]:
        """List pictures, the newest first.

        Args:
            search: Only pictures with this text in their prompt, such as a word or "<hypernet:inca".
            base: Only pictures of the base of this name.
            seed: Only pictures of this seed.
            job: Only pictures of this job.
            before: Only pictures with a lower id.
            limit: The most pictures.
        """
        conditions, parameters = ["1"], list[str | int]()
        if search:
            conditions.append(r"prompt LIKE ? ESCAPE '\'")
            parameters.append(f"%{search.translate(LIKE_ESCAPES)}%")
        for column, value in (("base", base), ("seed", seed), ("job", job)):
            if value is not None:
                conditions.append(f"{column} = ?")
                parameters.append(value)
        if before is not None:
            conditions.append("id < ?")
            parameters.append(before)
        query = f"SELECT * FROM pictures WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?"
        return [_to_picture(row) for row in self._database.rows(query, (*parameters, limit))]

    def path(self, picture: StoredPicture) -> Path:
        """Return the path of a picture's file."""
        return self._folder / picture.file

    def delete(self, picture: StoredPicture) -> None:
        """Delete a picture and its file."""
        self.path(picture).unlink(missing_ok=True)
        self._database.change("DELETE FROM pictures WHERE id = ?", (picture.id,))


def _to_picture(row: sqlite3.Row) -> StoredPicture:
    names = ("id", "job", "position", "file", "created", "width", "height")
    values = {name: row[name] for name in names}
    return StoredPicture(**values, recipe=json.loads(row["recipe"]), effects=json.loads(row["effects"]))
