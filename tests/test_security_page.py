"""SECURITY.md names, for each attack and each weakness, what stops it, and the tests that show it."""

import ast
import re

import pytest

from tests.security_page import PAGE, PROJECT, all_tests, named_in, table

MODEL = table("Threat model", "who")
REASONS = {row[0].strip("`"): row for row in table("Known weaknesses of the bundled Triton", "key")}
WEAKNESSES = table("Known weaknesses of the bundled Triton", "weakness")


@pytest.mark.parametrize("name", all_tests(), ids=str)
def test_each_test_that_is_named_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    content = (PROJECT / file).read_text(encoding="utf-8")
    if function:
        defined = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert function in {node.name for node in ast.walk(ast.parse(content)) if isinstance(node, defined)}


def test_each_line_of_the_threat_model_says_what_stops_it_and_names_its_test() -> None:
    who = {row[0] for row in MODEL}
    for name in (
        "client without a key",
        "web page in a user's browser",
        "neighbour in the network",
        "operator, and root",
    ):
        assert name in who
    assert {f"key for `{scope}`" for scope in ("predict", "feedback", "read", "admin")} <= who
    for row in MODEL:
        assert len(row) == 5
        if not row[0].startswith("operator"):
            assert row[2], row
            assert named_in(row[4]), row


def test_each_weakness_has_its_bulletin_score_release_and_a_reason_with_a_test() -> None:
    names = [row[0] for row in WEAKNESSES]
    assert len(names) == len(set(names)) > 50
    assert f"All {len(names)} weaknesses" in PAGE.read_text(encoding="utf-8")
    for name, bulletin, score, mended, needs, kept_out in WEAKNESSES:
        assert re.fullmatch(r"CVE-20\d\d-\d{4,5}", name)
        number = re.match(
            r"\[(\d{4})\]\(https://github\.com/NVIDIA/product-security/blob/main/20\d\d/(\d{4})/", bulletin
        )
        assert number, name
        assert number[1] == number[2]
        assert re.fullmatch(r"\d{1,2}\.\d", score), name
        assert re.fullmatch(r"2[4-9]\.\d\d", mended), name
        assert mended > "24.10", "the bundled release has it mended"
        assert needs, name
        reasons = re.findall(r"`([\w-]+)`", kept_out)
        assert reasons, name
        assert set(reasons) <= REASONS.keys(), name
    used = {reason for row in WEAKNESSES for reason in re.findall(r"`([\w-]+)`", row[-1])}
    assert used == REASONS.keys()
    for reason, row in REASONS.items():
        assert named_in(row[-1]), reason


def test_the_weaknesses_that_were_once_missing_are_there() -> None:
    scores = {row[0]: float(row[2]) for row in WEAKNESSES}
    assert scores["CVE-2026-47627"] == 9.8
    missing = {"CVE-2026-47606", "CVE-2026-47630", "CVE-2026-47481", "CVE-2025-23328", "CVE-2025-23329"}
    assert missing <= scores.keys()


def test_the_container_image_is_newer_than_every_release_that_mends_one() -> None:
    image = (PROJECT / "deploy/images/triton.Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"ARG TRITON_IMAGE=nvcr\.io/nvidia/tritonserver:(\d\d\.\d\d)-py3", image)
    assert found
    assert found[1] >= max(row[3] for row in WEAKNESSES)
