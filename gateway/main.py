"""The gateway's application."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from gateway import admin, feedback, health, predictions
from gateway.admin_key import load_admin_key
from gateway.answer_cache import MAX_BYTES, AnswerCache
from gateway.deps import Loop, set_loop, set_predictor
from gateway.openapi import DocumentedAPI
from gateway.predictor import Predictor
from gateway.problems import answer_with_problems
from serving.call_statistics import CallStatistics
from serving.triton_client import TritonClient
from settings import Settings
from storage.storage import Storage


def create_app(settings: Settings, storage: Storage, statistics: CallStatistics) -> FastAPI:
    """Make the app that answers through the Triton of `settings`, up or not, and remembers in `storage`.

    It counts its calls to the model in `statistics`.

    Raises:
        PipelineError: the admin key can neither be read nor made.
    """
    loop = Loop(settings, storage, load_admin_key(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client = TritonClient(settings.triton_address)
        predictor = Predictor(client, AnswerCache(MAX_BYTES), statistics)
        set_predictor(app, predictor)
        set_loop(app, loop)
        watch = asyncio.create_task(predictor.watch())
        # Modules, schemas and routes are here to stay. The collector's walks over them held up requests: without, the
        # 99th percentile at 64 connections fell from 58 to 20 ms, and the rate rose by a quarter.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            watch.cancel()
            await client.close()

    app = DocumentedAPI(
        title="Sentiment",
        summary="Tells the sentiment of texts.",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,
        routes=[*predictions.routes, *health.routes, *feedback.routes, *admin.routes],
    )
    answer_with_problems(app)
    return app
