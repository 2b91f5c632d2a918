"""`GET /labelling`: random texts to label, until their labels decide; `POST /labelling/{text}/skip` leaves one out."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.exc import OperationalError

from gateway.http.schemas import Labelling
from lifecycle.monitoring.labelling import LEAST_TEXTS
from tests.gateway.conftest import ADMIN_KEY
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_feedback import Gateway, gateway_with_models
from tests.gateway.routes.test_wrong_requests import assert_problem
from tests.sampled_texts import asked, unlike

LABELLING = "/labelling"
KEY = {"X-API-Key": ADMIN_KEY}


@pytest.fixture
def gateway(triton: FakeTriton, bert_bundle: Path, tmp_path: Path) -> Iterator[Gateway]:
    with gateway_with_models(triton, tmp_path, bert_bundle) as gateway:
        yield gateway


def found(response: httpx.Response) -> Labelling:
    assert response.status_code == 200, response.text
    return Labelling.model_validate_json(response.content)


def test_texts_are_given_until_their_labels_decide(gateway: Gateway) -> None:
    asked(gateway.database, unlike(LEAST_TEXTS), positive=0.9)
    first = found(gateway.http.get(LABELLING, headers=KEY, params={"limit": 12}))
    assert first.standing is not None
    assert (first.standing.labels, first.standing.under, first.standing.accuracy) == (0, None, None)
    assert len({item.id for item in first.texts}) == 12
    skipped = found(gateway.http.post(f"{LABELLING}/{first.texts[0].id}/skip", headers=KEY)).standing
    assert skipped is not None
    assert skipped.skipped == 1
    rows = [{"text": item.text, "label": "Negative"} for item in first.texts[1:]]
    assert gateway.http.post("/feedback", json={"feedback": rows}, headers=KEY).status_code == 201
    last = found(gateway.http.get(LABELLING, headers=KEY))
    assert last.texts == []
    assert last.standing is not None
    assert (last.standing.labels, last.standing.under, last.standing.version) == (11, True, 1)
    assert "decided: it is under 80 %" in last.standing.summary


def test_where_too_little_was_sampled_there_are_no_texts(gateway: Gateway) -> None:
    assert gateway.http.get(LABELLING, headers=KEY).json() == {"standing": None, "texts": []}
    assert_problem(gateway.http.post(f"{LABELLING}/0123/skip", headers=KEY), 404, "not-found")


@pytest.mark.parametrize("limit", ["0", "301", "ten", "-1", ""])
def test_a_limit_is_a_number_from_1_to_300(gateway: Gateway, limit: str) -> None:
    problem = assert_problem(gateway.http.get(LABELLING, headers=KEY, params={"limit": limit}), 422, "invalid-fields")
    assert problem["errors"] == [{"field": "limit", "message": f"is {limit!r}; a whole number from 1 to 300 is needed"}]


def test_a_database_that_does_not_answer_is_told(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OperationalError("select", {}, Exception("disk I/O error"))

    with monkeypatch.context() as patch:
        patch.setattr("lifecycle.monitoring.labelling.newest_sample", fail)
        assert_problem(gateway.http.get(LABELLING, headers=KEY), 503, "storage-unavailable")
    asked(gateway.database, unlike(LEAST_TEXTS))
    assert len(found(gateway.http.get(LABELLING, headers=KEY, params={"limit": 5})).texts) == 5
