"""The paths that the HTTP front serves, as one ASGI application."""

from __future__ import annotations

import logging

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from eastwest import __version__
from eastwest.clock import Clock
from eastwest.config import LimitsConfig
from eastwest.errors import EastWestError, InternalError, NotFound, Phase, Unavailable
from eastwest.messages import ModelInfo
from eastwest.v1 import inference_pb2 as inference
from eastwest.wire import explanation_from_wire, explanation_to_json
from router.http.answers import to_json
from router.http.calls import Calls, Endpoint, read_tenant
from router.http.failures import error_body, error_headers
from router.metrics import CONTENT_TYPE
from router.service import InferenceService
from router.shell import Shell
from router.text import Tokenizer

log = logging.getLogger(__name__)


def http_app(
    service: InferenceService,
    shell: Shell,
    tokenizer: Tokenizer,
    limits: LimitsConfig,
    clock: Clock,
) -> ASGIApp:
    """The application; see docs/http.md for what each path does."""
    calls = Calls(service, tokenizer, limits, clock)
    generating = {
        "/v1/chat/completions": Endpoint(calls, chat=True),
        "/v1/completions": Endpoint(calls, chat=False),
    }
    app = Starlette(
        routes=[
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in generating.items()),
            *_told(service, shell, clock),
        ],
        exception_handlers={
            EastWestError: _typed,
            HTTPException: _not_served,
            Exception: _defect,
        },
    )
    app.router.redirect_slashes = False

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        """Calls that generate go straight to their endpoint: layers in between would take part in
        each piece of an answer."""
        chosen: ASGIApp = app
        if scope["type"] == "http" and scope["method"] == "POST":
            chosen = generating.get(scope["path"], app)
        await chosen(scope, receive, send)

    return route


def _told(service: InferenceService, shell: Shell, clock: Clock) -> list[Route]:
    """What can be asked without a request."""
    started_s = int(clock.wall_s())

    async def models(_: Request) -> Response:
        return _ok({"object": "list", "data": [_described(shell.model(), started_s)]})

    async def model(request: Request) -> Response:
        served, name = shell.model(), request.path_params["name"]
        if name != served.name:
            raise NotFound(
                f"model {name[:128]!r} is not served here; this deployment serves {served.name!r}"
            )
        return _ok(_described(served, started_s))

    async def health(_: Request) -> Response:
        if not shell.ready.is_set():
            raise Unavailable("no workers that could serve a request are up", phase=Phase.ADMISSION)
        return _ok({"status": "ok"})

    async def alive(_: Request) -> Response:
        return _ok({"status": "ok"})

    async def metrics(_: Request) -> Response:
        return Response(shell.metrics.text(), media_type=CONTENT_TYPE)

    async def version(_: Request) -> Response:
        return _ok({"version": __version__})

    async def explain(request: Request) -> Response:
        asked = inference.ExplainRequest(
            request_id=request.path_params["name"], tenant=read_tenant(request.headers)
        )
        return _ok(explanation_to_json(explanation_from_wire(service.explain(asked))))

    return [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/requests/{name:path}/explain", explain),
        Route("/health", health),
        Route("/healthz", alive),
        Route("/metrics", metrics),
        Route("/version", version),
    ]


def _described(model: ModelInfo, started_s: int) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": started_s,
        "owned_by": "eastwest",
        "max_model_len": model.context_tokens,
    }


def _ok(value: object) -> Response:
    return Response(to_json(value), media_type="application/json")


def _failed(error: EastWestError) -> Response:
    headers = dict(error_headers(error))
    return Response(error_body(error), status_code=error.status.http, headers=headers)


async def _typed(_: Request, error: Exception) -> Response:
    assert isinstance(error, EastWestError)
    return _failed(error)


async def _not_served(request: Request, _: Exception) -> Response:
    """No such path, or not with this method."""
    path = f"{request.method[:16]} {request.url.path[:128]}"
    return _failed(NotFound(f"{path} is not served here; docs/http.md lists what is"))


async def _defect(_: Request, error: Exception) -> Response:
    log.error("a request over HTTP failed", exc_info=error)
    return _failed(InternalError.caused_by("the request", error))
