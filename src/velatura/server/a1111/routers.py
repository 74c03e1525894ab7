"""The routers of A1111's API, one for a group of routes."""

from __future__ import annotations

from velatura.server.a1111 import (
    generation,
    images,
    lists,
    merging,
    models,
    progress,
    scripts,
    settings,
    training,
)

ROUTERS = (
    generation.router,
    progress.router,
    settings.router,
    lists.router,
    models.router,
    images.router,
    scripts.router,
    training.router,
    merging.router,
)
