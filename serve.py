"""Runs Triton, the gateway and the scheduler, together or separately, until a signal shuts them down cleanly."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from common.errors import PipelineError
from common.periodic import run_periodically
from common.settings import Settings
from gateway.grpc_port.guards import KeyGuard
from gateway.grpc_port.server import HOST, GrpcFront
from gateway.http.connections import raise_descriptor_limit
from gateway.http.http_protocol import BoundedHttpProtocol
from gateway.http.localhost import hold_localhost
from gateway.load_control.admission import UnderWay
from gateway.main import GatewayApp, create_app
from lifecycle.canary import release_steering
from lifecycle.canary.release_steering import ReleaseSteering
from lifecycle.deployment import post_deploy_monitor
from lifecycle.deployment.post_deploy_monitor import PostDeployMonitor
from lifecycle.deployment.promotion import reconcile, reconcile_tritons
from lifecycle.deployment.repair import replace_broken, restore_record
from serving.client import sockets
from serving.client.call_statistics import CallStatistics
from serving.client.errors import TritonTimeoutError, TritonUnavailableError
from serving.client.replicas import PROBE, Replicas
from serving.host.open_control import OpenControl
from serving.host.supervisor import TritonSupervisor
from serving.model_repo.repository import ModelRepository
from storage.database import Database
from storage.lazy_database import Storage

if TYPE_CHECKING:
    from lifecycle.jobs.scheduler import Scheduler

_REMINDER_S = 30.0
_LOOK_S = 0.1
_RECONCILE_S = 5.0
_KEEP_ALIVE_S = 75
"""Idle time after which a connection is closed. It is longer than in load balancers and clients (nginx and AWS 60 s,
httpx 5 s). Otherwise they could send a request just when the connection is closed, and get no response."""
_LAST_WORDS_S = 1
"""Seconds to write the last responses before connections are closed."""
_TRITON_ENDING_S = 10.0
"""Seconds to wait for another Triton to end; longer than a Triton without requests takes."""

log = logging.getLogger(__name__)


async def serve(settings: Settings, *, schedules: bool = True) -> None:
    """Serve until SIGINT or SIGTERM. Then finish accepted requests and stop Triton; a second signal kills Triton.

    With `schedules`, the scheduler runs in this process; otherwise another process runs `schedule`.

    Raises:
        PipelineError: the bundled Triton cannot run here, or no version can be deployed.
    """
    raise_descriptor_limit()
    storage = Storage(settings)
    statistics = CallStatistics()
    await asyncio.to_thread(_settle, settings, storage)
    scheduler = _scheduler(settings, storage) if schedules else None
    under_way = UnderWay()
    triton = None
    if settings.triton_url is None:
        # Raises if the deployed version is incomplete and `_settle` could not deploy an earlier one.
        ModelRepository(settings.model_repository).deployed()
        triton = TritonSupervisor(settings, partial(_replace_broken, settings, storage))
    app = create_app(settings, storage, statistics, under_way)
    front = None
    if settings.triton_url is None:
        front = GrpcFront(settings.triton_grpc_port, settings.bundled_triton, app.guard, settings.batch_deadline_s)
        await front.start()
    server = _Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="none",  # uvicorn runs in the event loop of the caller
            http=BoundedHttpProtocol,
            # Clients are identified by keys, never by headers that anyone can send.
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
        scheduler,
    )
    held = hold_localhost(settings.host, (settings.port, settings.triton_grpc_port))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    tasks = [
        asyncio.create_task(_announce_gateway(app, server.listening, settings)),
        *map(asyncio.create_task, _watches(settings, storage, statistics)),
    ]
    supervisor = [] if triton is None else [asyncio.create_task(triton.run())]
    if scheduler is not None:
        scheduler.start()
    serving = asyncio.create_task(server.serve())
    try:
        # If the supervisor fails because Triton cannot be started, everything shuts down.
        await asyncio.wait([serving, *supervisor], return_when=asyncio.FIRST_COMPLETED)
    finally:
        server.should_exit = True
        await serving
        if front is not None:
            await front.stop()
        for task in (*tasks, *supervisor):
            task.cancel()
        storage.hurry()
        if scheduler is not None:
            await asyncio.to_thread(scheduler.stop)
        ended = await asyncio.gather(*tasks, *supervisor, return_exceptions=True)
        storage.close()
        for taken in held:
            taken.close()
    for result in ended:
        if isinstance(result, Exception):
            raise result
    log.info("The pipeline has shut down.")


def schedule(settings: Settings) -> None:
    """Run only the scheduler until SIGINT or SIGTERM. Of several such processes, one works and the others wait."""
    storage = Storage(settings)
    _settle(settings, storage)
    scheduler = _scheduler(settings, storage)
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    OpenControl(settings.triton_url).watch_in_thread()
    scheduler.start()
    ending.wait()
    storage.hurry()
    scheduler.stop()
    storage.close()
    log.info("The scheduler has shut down.")


def _scheduler(settings: Settings, storage: Storage) -> "Scheduler":
    """Return the scheduler. It brings MLflow, which an image of the gateway alone does not have."""
    from lifecycle.jobs.scheduler import Scheduler

    return Scheduler(settings, storage)


async def serve_triton(settings: Settings) -> None:
    """Run only the bundled Triton until SIGINT or SIGTERM.

    Raises:
        PipelineError: Triton cannot run here.
    """
    raise_descriptor_limit()
    key = settings.triton_key.get_secret_value() if settings.triton_key else ""
    if not key:
        log.warning(
            "SENTIMENT_TRITON_KEY is not set, so gateways on other hosts get predictions, but cannot promote a "
            "version. Set the same key here, for the gateways and for the scheduler."
        )
    front = GrpcFront(settings.triton_grpc_port, settings.bundled_triton, KeyGuard(key), settings.batch_deadline_s)
    supervisor = asyncio.create_task(TritonSupervisor(settings).run())
    await front.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.cancel)
    announcing = asyncio.create_task(_announce_triton(settings))
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await supervisor
    finally:
        announcing.cancel()
        await front.stop()
    log.info("Triton has shut down.")


def _watches(settings: Settings, storage: Storage, statistics: CallStatistics) -> Iterator[Coroutine[Any, Any, None]]:
    """Yield the periodic tasks for the Tritons, the deployed version and the release; each runs until cancelled."""
    looks: tuple[tuple[str, Callable[[Database], None], float], ...] = (
        ("versions of the Tritons", partial(reconcile_tritons, settings), _RECONCILE_S),
        ("post-deploy monitor", PostDeployMonitor(settings, statistics).look, post_deploy_monitor.INTERVAL_S),
        ("release steering", ReleaseSteering(settings).look, release_steering.INTERVAL_S),
    )
    for name, look, interval_s in looks:
        yield run_periodically(name, partial(asyncio.to_thread, _look, look, storage), interval_s, delay_s=interval_s)


def _look(look: Callable[[Database], None], storage: Storage) -> None:
    look(storage.open())


def _settle(settings: Settings, storage: Storage) -> None:
    """Reconcile disk and database, and replace a broken deployed version, before Triton starts."""
    try:
        database = storage.open()
        restore_record(settings, database)
        if settings.triton_url is None:
            replace_broken(settings, database, by_loading=False)
        reconcile(settings, database)
    except (PipelineError, SQLAlchemyError) as error:
        log.error("The model repository and the database could not be reconciled: %s", error)


def _replace_broken(settings: Settings, storage: Storage) -> None:
    """Deploy the previous version if Triton ended because of the current one."""
    try:
        replace_broken(settings, storage.open(), by_loading=True)
    except (PipelineError, SQLAlchemyError) as error:
        log.error("%s", error)


def check_ports(settings: Settings, *, gateway: bool = True) -> None:
    """Raise a PipelineError that names each port in use, and the fix.

    The gateway's port is only checked if `gateway` is true. If the ports are free but a Triton still listens on a
    socket in the same state directory, wait up to `_TRITON_ENDING_S`: that of a killed pipeline ends a moment after it.
    """
    needed = {"the gateway": (settings.host, settings.port)} if gateway else {}
    if settings.triton_url is None:
        needed["the gRPC port for programs"] = (HOST, settings.triton_grpc_port)
    taken = [f"{what} ({host}:{port}): {why}" for what, (host, port) in needed.items() if (why := _refusal(host, port))]
    deadline = time.monotonic() + _TRITON_ENDING_S
    while settings.triton_url is None and not taken and (found := sockets.neighbours(settings.bundled_triton)):
        if time.monotonic() > deadline:
            raise PipelineError(
                f"A Triton still listens at {found[0]}. Is another pipeline running with the same "
                "SENTIMENT_STATE_DIR? Stop it, or set another directory for this one."
            )
        time.sleep(0.2)
    if taken:
        raise PipelineError(
            f"A port is not available: {'; '.join(taken)}. Is the pipeline already running? Stop it, or set "
            "SENTIMENT_PORT to another port; the gRPC port for programs is the one after it."
        )


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
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"at {scheme}://{host}:{settings.port}{pages}"


async def _announce_gateway(app: GatewayApp, listening: asyncio.Event, settings: Settings) -> None:
    """Log the address when the gateway is ready: it listens, and its own probe of the model succeeded."""
    reminder = _Reminder(settings.triton_address)
    await listening.wait()
    model = app.context.predictor.model
    while not model.ready:
        reminder.remind(model.failure)
        await asyncio.sleep(_LOOK_S)
    log.info("Ready: version %d is deployed %s.", model.version, _pages(settings))


async def _announce_triton(settings: Settings) -> None:
    """Log the address and the version when the bundled Triton responds."""
    reminder = _Reminder(settings.bundled_triton)
    tritons = Replicas(settings.bundled_triton)
    try:
        while True:
            try:
                version = (await tritons.classify([PROBE], timeout_s=10)).version
                break
            except (TritonUnavailableError, TritonTimeoutError) as error:
                reminder.remind(error)
                await asyncio.sleep(_LOOK_S)
    finally:
        await tritons.close()
    log.info("Ready: version %d is deployed at %s:%d (gRPC).", version, HOST, settings.triton_grpc_port)


class _Reminder:
    """Logs every `_REMINDER_S` seconds that a Triton does not respond yet."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._reminded_at = time.monotonic()

    def remind(self, reason: Exception | None) -> None:
        if reason is not None and time.monotonic() - self._reminded_at >= _REMINDER_S:
            self._reminded_at = time.monotonic()
            log.warning("Triton at %s does not respond yet: %s", self._address, reason)


class _Server(uvicorn.Server):
    """Uvicorn with an event for listening, no signal handling of its own, and a shutdown after accepted requests."""

    def __init__(
        self,
        config: uvicorn.Config,
        under_way: UnderWay,
        longest_s: float,
        triton: TritonSupervisor | None,
        scheduler: "Scheduler | None",
    ) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._under_way = under_way
        self._longest_s = longest_s
        self._triton = triton
        self._scheduler = scheduler
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and set the event `listening`."""
        await super().startup(sockets)
        if self.started:
            self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: Uvicorn would raise the signal again after its own end, before Triton could stop."""
        yield

    def stop(self) -> None:
        """Refuse new requests and shut down after the accepted ones; at the second call, shut down at once."""
        if self._ending is None:
            if count := self._under_way.count:
                requests = f"{count:,} requests" if count != 1 else "1 request"
                log.info("Shutting down after %s in progress; a second signal stops at once.", requests)
            else:
                log.info("Shutting down; no requests in progress.")
            for kind in self._scheduler.running_jobs() if self._scheduler is not None else ():
                log.info("Stopping the running %s, which resumes at the next start. A second signal kills it.", kind)
            self._ending = asyncio.create_task(self._end_in_order())
        else:
            self.should_exit = self.force_exit = True
            if self._triton is not None:
                self._triton.kill()
            if self._scheduler is not None:
                self._scheduler.kill_jobs()

    async def _end_in_order(self) -> None:
        try:
            await asyncio.wait_for(self._under_way.end(), self._longest_s)
        except TimeoutError:
            log.warning("%d requests did not finish in time and are dropped.", self._under_way.count)
        self.should_exit = True
