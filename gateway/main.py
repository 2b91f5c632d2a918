"""The gateway's application."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from starlette.types import ASGIApp

from gateway import admin, docs, feedback, health, metrics_route, predictions, releases, suggestions
from gateway.access import AccessLayer, open_scopes
from gateway.admin_key import load_admin_key
from gateway.admission import Admission, Route, UnderWay
from gateway.answer_cache import MAX_BYTES, AnswerCache
from gateway.caller_limits import CallerLimits
from gateway.challenger import Challenger
from gateway.console import routes as console_routes
from gateway.console.pulse import Pulse
from gateway.console.sessions import Sessions
from gateway.console.views import Console, set_console
from gateway.deps import Loop, set_limits, set_loop, set_metrics, set_predictor, set_suggester
from gateway.known_keys import KnownKeys
from gateway.metrics import Metrics
from gateway.observing import Observing
from gateway.openapi import DocumentedAPI
from gateway.predictor import Predictor
from gateway.problems import answer_with_problems
from gateway.release_watch import ReleaseWatch
from gateway.sampling import Sampler
from gateway.scrape import Scrape
from gateway.security_headers import security_headers
from gateway.suggester import Suggester
from serving.call_statistics import CallStatistics
from serving.replicas import Replicas
from serving.repository import ModelRepository
from settings import Settings
from storage.storage import Storage
from storage.tables import Release


def create_app(settings: Settings, storage: Storage, statistics: CallStatistics, under_way: UnderWay) -> FastAPI:
    """Make the app that answers through the Tritons of `settings`, up or not, and remembers in `storage`.

    It counts its calls to the model in `statistics`, and its requests in `under_way`.

    Raises:
        PipelineError: the admin key can neither be read nor made.
    """
    loop = Loop(settings, storage)
    anonymous = open_scopes(settings)
    is_https = settings.tls_certificate is not None
    admin_key = load_admin_key(settings)
    keys = KnownKeys(storage, admin_key, anonymous)
    metrics = Metrics()
    scrape = Scrape(settings, storage, metrics)
    console = Console(Sessions(keys, admin_key, settings.port, is_https), Pulse(metrics), under_way)
    limits = CallerLimits(settings.caller_limit) if settings.caller_limit else None
    bounded: dict[str, Route] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tritons = Replicas(settings.triton_address, ModelRepository(settings.model_repository).named)
        cache = AnswerCache(MAX_BYTES)
        metrics.watch_cache(cache)
        sampler = None
        if settings.sample_per_minute:
            sampler = Sampler(storage, settings.sample_per_minute, settings.sample_texts, metrics)
        predictor = Predictor(
            tritons, cache, statistics, metrics, settings.live_deadline_s, settings.batch_deadline_s, sampler
        )

        def make_challenger(release: Release) -> Challenger:
            return Challenger(settings, release, tritons, metrics)

        tried = ReleaseWatch(storage, predictor, make_challenger, settings.sample_texts)
        bounded.update(predictions.bounded_routes(predictor))
        set_predictor(app, predictor)
        set_limits(app, limits)
        set_loop(app, loop)
        suggester = Suggester(settings, storage)
        set_suggester(app, suggester)
        set_metrics(app, metrics, scrape)
        await keys.first_look()
        await tried.first_look()
        watches = [
            asyncio.create_task(tritons.watch()),
            asyncio.create_task(predictor.watch()),
            asyncio.create_task(keys.watch()),
            asyncio.create_task(tried.watch()),
            asyncio.create_task(console.pulse.watch()),
        ]
        if sampler is not None:
            watches.append(asyncio.create_task(sampler.keep_writing()))
        # Modules, schemas and routes are here to stay. The collector's walks over them held up requests: without, the
        # 99th percentile at 64 connections fell from 58 to 20 ms, and the rate rose by a quarter.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            for watch in watches:
                watch.cancel()
            suggester.end()
            await tried.end()
            if sampler is not None:
                await sampler.end()
            await tritons.close()
            await scrape.close()

    routes = [*predictions.routes, *health.routes, *metrics_route.routes, *feedback.routes]
    routes += [*suggestions.routes, *admin.routes, *releases.routes]
    routes += console_routes.routes()
    if settings.docs:
        routes += docs.routes
    app = _LayeredAPI(
        anonymous,
        # The layers tell more; to find out at each request that nobody wants FastAPI's own cost a tenth of a request.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        title="Sentiment",
        summary="Tells the sentiment of texts.",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,
        routes=routes,
        openapi_url=docs.OPENAPI_PATH if settings.docs else None,
        docs_url=None,
        redoc_url=None,
    )
    answer_with_problems(app)
    set_console(app, console)
    app.layers = [
        partial(Observing, routes=app.routes, metrics=metrics),
        partial(
            AccessLayer,
            keys=keys,
            anonymous=anonymous,
            public_paths=[route.path for route in routes if route.scope is None] + [docs.OPENAPI_PATH],
            local_hosts_only=settings.access == "auto" and bool(anonymous),
            headers={
                "": security_headers(is_https),
                docs.PATH: security_headers(is_https, docs.CONTENT_POLICY, "max-age=3600"),
                **console_routes.headers(is_https),
            },
        ),
        partial(Admission, under_way=under_way, routes=bounded, limits=limits),
    ]
    return app


class _LayeredAPI(DocumentedAPI):
    """With layers around what the framework itself puts around the routes, so that they see its answers too."""

    layers: Sequence[Callable[[ASGIApp], ASGIApp]] = ()
    """The outermost first."""

    def build_middleware_stack(self) -> ASGIApp:
        """Return what is called for each request."""
        app = super().build_middleware_stack()
        for layer in reversed(self.layers):
            app = layer(app)
        return app
