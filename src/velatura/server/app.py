"""Build the application: routes, the checks in front of them, and the workers' start and end."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from velatura.files import refuse_duplicate_keys
from velatura.server.a1111.errors import A1111_PATHS, A1111ErrorAnswer, a1111_error
from velatura.server.a1111.routers import ROUTERS as A1111_ROUTERS
from velatura.server.api.datasets import router as datasets_router
from velatura.server.api.events import router as events_router
from velatura.server.api.inputs import router as inputs_router
from velatura.server.api.jobs import router as jobs_router
from velatura.server.api.library import router as library_router
from velatura.server.api.pictures import router as pictures_router
from velatura.server.api.plans import router as plans_router
from velatura.server.api.prompts import router as prompts_router
from velatura.server.api.recipes import router as recipes_router
from velatura.server.api.runs import router as runs_router
from velatura.server.api.studies import router as studies_router
from velatura.server.api.system import router as system_router
from velatura.server.errors import ApiError, ErrorAnswer, ErrorShape, describe_errors, install_error_handlers
from velatura.server.guard import Guard
from velatura.server.limits import BodyLimit
from velatura.server.page_files import page_router
from velatura.server.settings import ServerSettings
from velatura.server.state import ServerState

if TYPE_CHECKING:
    from velatura.compare.cluster import Cluster

API_ROUTERS = (
    jobs_router,
    events_router,
    pictures_router,
    inputs_router,
    recipes_router,
    prompts_router,
    library_router,
    datasets_router,
    plans_router,
    runs_router,
    studies_router,
    system_router,
)
# By the start of a path, how errors there look instead
ERROR_SHAPES: dict[str, ErrorShape] = dict.fromkeys(A1111_PATHS, a1111_error)


def create_app(settings: ServerSettings, cluster: Cluster | None = None) -> FastAPI:
    """Build the application.

    Args:
        settings: The server's settings.
        cluster: The connection to a Ray cluster that paints; None: this process paints.

    Returns:
        The application; `app.state.velatura` is its `ServerState`.

    Raises:
        AlreadyExists: Another server uses the output folder.
        BadFile: A folder of the library does not exist, or the database cannot be used.
    """
    state = ServerState(settings, cluster)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        state.start()
        try:
            yield
        finally:
            state.stop()

    app = FastAPI(
        title="velatura",
        version=version("velatura"),
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(refuse_duplicate_fields)],
    )
    app.state.velatura = state
    page_routers = () if settings.api_only else (page_router(),)
    for router in API_ROUTERS:
        app.include_router(router, responses=describe_errors(ErrorAnswer))
    for router in A1111_ROUTERS:
        app.include_router(router, responses=describe_errors(A1111ErrorAnswer))
    for router in page_routers:
        app.include_router(router)
    routes = [route for router in (*API_ROUTERS, *A1111_ROUTERS, *page_routers) for route in router.routes]
    install_error_handlers(app, state.folders.roots, ERROR_SHAPES, routes)
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Guard, settings=settings, own_names=_own_names(settings))
    return app


async def refuse_duplicate_fields(request: Request) -> None:
    """Refuse a body of JSON with the same key twice in one object, of which the route would see the last one alone.

    Only a body that has been read for a route as a whole is looked at: files are streamed, and come with no JSON.

    Raises:
        ApiError: A key is there twice.
    """
    body: bytes = vars(request).get("_body", b"")  # Starlette keeps what request.body() returned there
    if not body:
        return
    try:
        # It may be long, and whether its numbers can be read is not asked here
        await run_in_threadpool(json.loads, body, object_pairs_hook=refuse_duplicate_keys, parse_int=str)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        return  # not JSON: the route says so, or takes it
    except ValueError as error:
        raise ApiError(422, "bad_json", f"the body is ambiguous, {error}: send every key once") from None


def _own_names(settings: ServerSettings) -> list[str]:
    """Return the names of this machine in its network, if other machines may come in."""
    return [socket.gethostname(), f"{socket.gethostname()}.local"] if settings.listen else []
