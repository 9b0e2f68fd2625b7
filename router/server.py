"""The router as a process sees it: a gRPC server around scheduler, links and sessions.

Serves `Inference`, `Cluster`, grpc.health.v1 and reflection, and where `router.http_port` is set
inference over HTTP, as OpenAI's API. Health is SERVING while a request could be served: a pair of
prefill and decode worker, or an aggregated worker, is up.
"""

from __future__ import annotations

import asyncio
import logging
import random
from functools import partial
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from eastwest.clock import Clock
from eastwest.config import Config, LimitsConfig
from eastwest.decoding import RefuseMalformed
from eastwest.errors import ConfigError, Unavailable
from eastwest.ports import ServingCosts
from eastwest.rpc import Options, server_options
from kv_store.sessions import MemorySessionStore, SessionStore
from router import cluster_service, sessions_service
from router.chat_template import load_chat_template
from router.cluster_service import ClusterService
from router.conversations import Conversations
from router.decision_log_file import decision_log_of
from router.erasing import erase as erase_session
from router.http.app import http_app
from router.http.server import HttpServer
from router.service import SERVICE, InferenceService
from router.session_book import SessionBook
from router.sessions_service import SessionsService
from router.shell import Shell
from router.text import load_tokenizer

log = logging.getLogger(__name__)

# How long clients that read slowly may take to hear that the router stops.
_DRAIN_S = 2.0
# How long gRPC may take to send last statuses.
_GRACE_S = 0.2
# Calls that have begun and said nothing count too, and those that ask for health or loads.
_CALLS_SHARE = 2


class Router:
    """One router. Built and run on one event loop; `start`, then `stop` once.

    model_dir: holds the model's tokenizer and chat template (`ModelError` where it does not).
    session_store: stays the caller's, who closes it after `stop`; None keeps sessions in this
    process only. costs: what work takes on the workers, where that is known. http_address:
    ``host:port`` of HTTP after `start`; None where it is off.
    """

    def __init__(
        self,
        config: Config,
        model_dir: Path,
        session_store: SessionStore | None,
        clock: Clock,
        rng: random.Random,
        costs: ServingCosts | None = None,
    ) -> None:
        self._config = config
        self.router_id = f"router-{rng.getrandbits(48):012x}"
        self._clock = clock
        self._tokenizer = tokenizer = load_tokenizer(model_dir)
        template = load_chat_template(model_dir, clock)
        self._log = decision_log_of(config.router, clock)
        self._log_task: asyncio.Task[None] | None = None
        self._shell = Shell(
            config.router,
            router_id=self.router_id,
            vocab_min=tokenizer.vocab_size,
            clock=clock,
            rng=rng,
            costs=costs,
            write=self._log.write if self._log is not None else None,
        )
        at_hand = MemorySessionStore(config.router.sessions_max, config.store.session_ttl_s, clock)
        book = SessionBook(session_store, at_hand)
        erase = partial(erase_session, self._shell, book)
        self._sessions = SessionsService(book, self._shell, erase, config.limits, clock)
        self._service = InferenceService(
            config,
            self._shell,
            tokenizer,
            Conversations(tokenizer, template, book, erase, clock),
            has_chat_template=template.available,
            router_id=self.router_id,
            clock=clock,
            rng=rng,
        )
        self._cluster = ClusterService(self._shell, config.router.drain_timeout_s)
        self._health = health.aio.HealthServicer()
        self._health_task: asyncio.Task[None] | None = None
        self._server: grpc.aio.Server | None = None
        self._http: HttpServer | None = None
        self.http_address: str | None = None

    async def start(self) -> str:
        """Bind and serve; returns the bound ``host:port``. `ConfigError` where it cannot bind."""
        server = grpc.aio.server(
            interceptors=[RefuseMalformed()],
            options=_options(self._config.limits),
            maximum_concurrent_rpcs=_CALLS_SHARE * self._service.calls_max,
        )
        services = (self._service, self._cluster, self._sessions)
        server.add_generic_rpc_handlers([service.handlers() for service in services])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        ours = (SERVICE, cluster_service.SERVICE, sessions_service.SERVICE)
        names = (*ours, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        self._http = self._bind_http()
        host, port = self._config.router.host, self._config.router.port
        host = f"[{host}]" if ":" in host else host
        try:
            bound = server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            if self._http is not None:
                await self._http.stop()
            raise ConfigError(
                f"router.port is {port} on {host}, which cannot be bound; allowed: a free port of "
                f"an address of this machine, or 0 for any free one"
            ) from error
        await self._set_health(serving=False)
        await server.start()
        self._server = server
        if self._http is not None:
            await self._http.start()
            self.http_address = self._http.address
            log.info("%s serves HTTP on %s", self.router_id, self.http_address)
        self._health_task = asyncio.create_task(self._publish_health(), name="router health")
        if self._log is not None:
            self._log_task = asyncio.create_task(self._log.run(), name="decision log")
        log.info("%s serves on %s:%d", self.router_id, host, bound)
        return f"{host}:{bound}"

    def add_worker(self, worker_id: str, address: str) -> None:
        """Keep a control stream to the worker at ``host:port`` from here on."""
        self._shell.add_worker(worker_id, address)

    async def remove_worker(self, worker_id: str) -> None:
        """Forget a worker; what it served for this router is lost. Idempotent."""
        await self._shell.remove_worker(worker_id)

    async def wait_ready(self) -> None:
        """Wait until a pair of prefill and decode worker, or an aggregated worker, is up."""
        await self._shell.ready.wait()

    async def stop(self) -> None:
        """End all requests with `Unavailable`, then serve no more. Idempotent."""
        server, self._server = self._server, None
        if self._health_task is not None:
            self._health_task.cancel()
            await asyncio.wait([self._health_task])
        await self._health.enter_graceful_shutdown()
        self._shell.end_all(Unavailable("the router is shutting down", retry_after_s=1.0))
        if server is not None:
            try:
                async with asyncio.timeout(_DRAIN_S):
                    await self._service.drained()
            except TimeoutError:
                log.warning("calls of clients that do not read are cut off")
            await server.stop(_GRACE_S)
        if self._http is not None:
            await self._http.stop()
        await self._shell.close()
        if self._log is not None and self._log_task is not None:
            self._log.stop()
            await self._log_task

    def _bind_http(self) -> HttpServer | None:
        config = self._config
        if config.router.http_port is None:
            return None
        app = http_app(self._service, self._shell, self._tokenizer, config.limits, self._clock)
        return HttpServer(
            app,
            config.router.host,
            config.router.http_port,
            header_bytes=config.limits.metadata_bytes,
        )

    async def _publish_health(self) -> None:
        while True:
            await self._shell.ready.wait()
            await self._set_health(serving=True)
            await self._shell.unready.wait()
            await self._set_health(serving=False)

    async def _set_health(self, *, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if serving else states.NOT_SERVING
        for name in (health.OVERALL_HEALTH, SERVICE):
            await self._health.set(name, status)


def _options(limits: LimitsConfig) -> Options:
    """Requests are limited in size; answers are bounded by what they answer."""
    base = server_options(limits.message_bytes)
    return [
        *(option for option in base if option[0] != "grpc.max_send_message_length"),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
        # Of one connection. What is beyond limits.client_streams hears so; what is beyond this
        # waits in the client.
        ("grpc.max_concurrent_streams", _CALLS_SHARE * limits.client_streams),
    ]
