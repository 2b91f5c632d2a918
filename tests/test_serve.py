"""What `serve` does beside the gateway goes on whatever it raises."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

import serve
from common import periodic
from common.settings import Settings
from lifecycle.canary import release_steering
from lifecycle.deployment import post_deploy_monitor
from serving.client.call_statistics import CallStatistics
from storage.lazy_database import Storage


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (serve, "reconcile_tritons"),
        (post_deploy_monitor.PostDeployMonitor, "look"),
        (release_steering.ReleaseSteering, "look"),
        (Storage, "open"),
    ],
)
def test_a_watch_outlives_what_it_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    monkeypatch.setattr(periodic, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(serve, "_RECONCILE_S", 0.01)
    monkeypatch.setattr(post_deploy_monitor, "INTERVAL_S", 0.01)
    monkeypatch.setattr(release_steering, "INTERVAL_S", 0.01)
    calls = 0
    is_back = threading.Event()
    original = getattr(owner, name)

    def faulty(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise RuntimeError("nobody expected this")
        is_back.set()
        return original(*arguments)

    monkeypatch.setattr(owner, name, faulty)
    settings = Settings(state_dir=tmp_path / "state", model_repository=tmp_path / "triton_repo")
    storage = Storage(settings)

    async def main() -> None:
        watches = [asyncio.create_task(watch) for watch in serve._watches(settings, storage, CallStatistics())]
        try:
            assert await asyncio.to_thread(is_back.wait, 60)
            assert not any(watch.done() for watch in watches)
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    asyncio.run(main())
    storage.close()
