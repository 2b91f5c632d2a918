"""Runs Triton, the gateway and the scheduler, together or apart, until a signal ends them in order."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from gateway.admission import UnderWay
from gateway.http_protocol import BoundedHttpProtocol
from gateway.main import create_app
from gateway.predictor import Predictor
from lifecycle.bake import BakeWatch
from lifecycle.promotion import reconcile, straighten
from lifecycle.release_steering import ReleaseSteering
from lifecycle.repair import replace_broken, restore_record
from lifecycle.schedule import Scheduler
from serving.call_statistics import CallStatistics
from serving.replicas import PROBE, Replicas
from serving.repository import ModelRepository
from serving.supervisor import TritonSupervisor
from serving.triton_client import TritonTimeoutError, TritonUnavailableError
from settings import Settings
from storage.storage import Storage

_REMINDER_S = 30.0
_LOOK_S = 0.1
_STRAIGHTEN_S = 5.0
_KEEP_ALIVE_S = 75
"""How long a connection may lie idle. Longer than balancers and clients keep theirs (nginx and AWS 60 s, httpx 5 s),
or one sends a request at the moment in which the connection is closed, and gets no answer."""
_LAST_WORDS_S = 1
"""For writing the last answers, after which connections are closed."""
_TRITON_ENDING_S = 10.0
"""Longer than a Triton without requests takes to end."""

log = logging.getLogger(__name__)


async def serve(settings: Settings, *, schedules: bool = True) -> None:
    """Serve until SIGINT or SIGTERM: the gateway answers what it has accepted, then Triton ends; a second one kills it.

    `schedules` is whether the scheduler may run here; where it does not, another process runs `schedule`.

    Raises:
        PipelineError: the bundled Triton cannot run here, or no version can serve.
    """
    storage = Storage(settings)
    statistics = CallStatistics()
    await asyncio.to_thread(_settle, settings, storage)
    scheduler = Scheduler(settings, storage) if schedules else None
    under_way = UnderWay()
    triton = None
    if settings.triton_url is None:
        # Where neither the deployed version can serve nor one before it, there is nothing to wait for.
        ModelRepository(settings.model_repository).deployed()
        triton = TritonSupervisor(settings, partial(_replace_broken, settings, storage))
    app = create_app(settings, storage, statistics, under_way)
    server = _Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="none",  # it runs in that of whoever calls this
            http=BoundedHttpProtocol,
            # Who asks is told by keys, never by headers that anyone can send.
            proxy_headers=False,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
            ws="none",
            server_header=False,
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            log_config=None,
            log_level=logging.WARNING,
            timeout_graceful_shutdown=_LAST_WORDS_S,
        ),
        under_way,
        settings.batch_deadline_s,
        triton,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    tasks = [
        asyncio.create_task(_announce_gateway(app, server.listening, settings)),
        asyncio.create_task(BakeWatch(settings, statistics).watch(storage)),
        asyncio.create_task(_keep_straight(settings, storage)),
        asyncio.create_task(ReleaseSteering(settings).watch(storage)),
    ]
    supervisor = [] if triton is None else [asyncio.create_task(triton.run())]
    if scheduler is not None:
        scheduler.start()
    serving = asyncio.create_task(server.serve())
    try:
        # A supervisor that fails, because Triton cannot be started, ends everything.
        await asyncio.wait([serving, *supervisor], return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.should_exit = True
        await serving
        for task in (*tasks, *supervisor):
            task.cancel()
        if scheduler is not None:
            await asyncio.to_thread(scheduler.stop)
        ended = await asyncio.gather(*tasks, *supervisor, return_exceptions=True)
        storage.close()
    for result in ended:
        if isinstance(result, Exception):
            raise result
    log.info("Everything has ended.")


def schedule(settings: Settings) -> None:
    """Run the scheduler alone until SIGINT or SIGTERM; of several processes that do, one works and the others wait.

    Raises:
        PipelineError: the scheduler ended by itself, which it never should; to be started again then.
    """
    storage = Storage(settings)
    _settle(settings, storage)
    scheduler = Scheduler(settings, storage)
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    scheduler.start()
    while scheduler.is_alive and not ending.wait(1):
        pass
    scheduler.stop()
    storage.close()
    if not ending.is_set():
        raise PipelineError("The scheduler ended by itself; the log says why. Start it again.")
    log.info("The scheduler has ended.")


async def serve_triton(settings: Settings) -> None:
    """Run the bundled Triton alone until SIGINT or SIGTERM.

    Raises:
        PipelineError: it cannot run here.
    """
    supervisor = asyncio.create_task(TritonSupervisor(settings).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.cancel)
    announcing = asyncio.create_task(_announce_triton(settings.bundled_triton))
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await supervisor
    finally:
        announcing.cancel()
    log.info("Triton has ended.")


async def _keep_straight(settings: Settings, storage: Storage) -> None:
    """Have the Tritons serve what is deployed, whatever happened to them, until cancelled."""
    while True:
        try:
            await asyncio.to_thread(lambda: straighten(settings, storage.open()))
        except (PipelineError, SQLAlchemyError, OSError) as error:
            log.error("The look at what the Tritons serve failed: %s", str(error).partition("\n")[0])
        await asyncio.sleep(_STRAIGHTEN_S)


def _settle(settings: Settings, storage: Storage) -> None:
    """Make disk and database agree, and have a version serve that can, before Triton starts."""
    try:
        database = storage.open()
        restore_record(settings, database)
        if settings.triton_url is None:
            replace_broken(settings, database, by_loading=False)
        reconcile(settings, database)
    except (PipelineError, SQLAlchemyError) as error:
        log.error("What was under way when the pipeline ended last cannot be settled now: %s", error)


def _replace_broken(settings: Settings, storage: Storage) -> None:
    """Where Triton ended because of the version, have the one before serve."""
    try:
        replace_broken(settings, storage.open(), by_loading=True)
    except (PipelineError, SQLAlchemyError) as error:
        log.error("%s", error)


def check_ports(settings: Settings, *, gateway: bool = True) -> None:
    """Raise a PipelineError that names each port which is taken, and what to do.

    `gateway` is whether one is to listen here. Where ports of Triton are taken and the gateway's is not, this waits for
    a while: the Triton of a pipeline that was killed ends a moment after it.
    """
    of_gateway = _refusals({"the gateway": (settings.host, settings.port)}) if gateway else []
    triton = {}
    if settings.triton_url is None:
        triton = {
            "Triton's gRPC": ("127.0.0.1", settings.triton_grpc_port),
            "Triton's metrics": ("127.0.0.1", settings.triton_metrics_port),
        }
        if settings.triton_http:
            triton["Triton's HTTP"] = ("127.0.0.1", settings.triton_http_port)
    deadline = time.monotonic() + (0 if of_gateway else _TRITON_ENDING_S)
    while (taken := _refusals(triton)) and time.monotonic() < deadline:
        time.sleep(0.2)
    problems = of_gateway + taken
    if problems:
        raise PipelineError(
            f"A port cannot be used: {'; '.join(problems)}. Is the pipeline running already? "
            "SENTIMENT_PORT moves the gateway, and Triton takes the three ports after it."
        )


def _refusals(addresses: Mapping[str, tuple[str, int]]) -> list[str]:
    return [
        f"{what} ({host}:{port}): {why}" for what, (host, port) in addresses.items() if (why := _refusal(host, port))
    ]


def _refusal(host: str, port: int) -> str | None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror
    return None


def _pages(settings: Settings) -> str:
    scheme = "https" if settings.tls_certificate else "http"
    pages = " (API pages: /docs)" if settings.docs else ""
    return f"at {scheme}://{settings.host}:{settings.port}{pages}"


async def _announce_gateway(app: FastAPI, listening: asyncio.Event, settings: Settings) -> None:
    """Say when the first answer can be had, and where: once the gateway listens, and itself knows that one can."""
    reminder = _Reminder(settings.triton_address)
    await listening.wait()
    predictor: Predictor = app.state.predictor
    while not predictor.ready:
        reminder.tell(predictor.failure)
        await asyncio.sleep(_LOOK_S)
    log.info("Ready: version %d answers %s.", predictor.version, _pages(settings))


async def _announce_triton(address: str) -> None:
    """Say when the Triton at `address` answers, and which version does."""
    reminder = _Reminder(address)
    tritons = Replicas(address)
    try:
        while True:
            try:
                version = (await tritons.classify([PROBE], timeout_s=10)).version
                break
            except (TritonUnavailableError, TritonTimeoutError) as error:
                reminder.tell(error)
                await asyncio.sleep(_LOOK_S)
    finally:
        await tritons.close()
    log.info("Ready: version %d answers at %s (gRPC).", version, address)


class _Reminder:
    """Says now and then that a Triton does not answer yet."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._told_at = time.monotonic()

    def tell(self, reason: Exception | None) -> None:
        if reason is not None and time.monotonic() - self._told_at >= _REMINDER_S:
            self._told_at = time.monotonic()
            log.warning("Triton at %s does not answer yet: %s", self._address, reason)


class _Server(uvicorn.Server):
    """Uvicorn that tells when it listens, leaves signals to the pipeline, and ends when what it took is answered."""

    def __init__(
        self, config: uvicorn.Config, under_way: UnderWay, longest_s: float, triton: TritonSupervisor | None
    ) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._under_way = under_way
        self._longest_s = longest_s
        self._triton = triton
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started:
            self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn would raise the signal once more after it ended, before Triton could end."""
        yield

    def stop(self) -> None:
        """Refuse new requests, and end after those under way; when asked again, at once."""
        if self._ending is None:
            log.info("Ending when %d requests under way are answered; once more ends at once.", self._under_way.count)
            self._ending = asyncio.create_task(self._end_in_order())
        else:
            self.should_exit = self.force_exit = True
            if self._triton is not None:
                self._triton.kill()

    async def _end_in_order(self) -> None:
        try:
            await asyncio.wait_for(self._under_way.end(), self._longest_s)
        except asyncio.TimeoutError:
            log.warning("%d requests took too long and are given up.", self._under_way.count)
        self.should_exit = True
