"""Values that clients set and that survive a restart, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from velatura.server.jobs.database import Database


class OptionStore:
    """Options in the database, as JSON values by their names."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> dict[str, Any]:
        """Return the options that were set."""
        rows = self._database.rows("SELECT name, value FROM options ORDER BY name")
        return {row["name"]: json.loads(row["value"]) for row in rows}

    def get(self, name: str, default: object = None) -> Any:
        """Return an option, or a default if it was never set."""
        rows = self._database.rows("SELECT value FROM options WHERE name = ?", (name,))
        return json.loads(rows[0]["value"]) if rows else default

    def set(self, values: Mapping[str, object]) -> None:
        """Set options, all of them or none."""
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO options (name, value) VALUES (?, ?)",
                [(name, json.dumps(value)) for name, value in values.items()],
            )

    def reset(self, name: str) -> None:
        """Forget an option."""
        self._database.change("DELETE FROM options WHERE name = ?", (name,))
