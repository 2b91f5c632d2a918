"""Versions that do not load, as what is promoted and as what is deployed at the start; texts that crash a version."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import onnx

from serving.model_repo.bundle import DESCRIPTION, TOKENIZER
from serving.model_repo.variants import FLOAT_GRAPH
from tests.e2e.chaos.fault import Fault
from tests.e2e.chaos.target import Target

Spoil = Callable[[Path], None]
POISON = "zzpoison"
UNKNOWN = "☃"
_FIRST_BAD = 10
_REFUSED = "could not be deployed|is no complete version"
_GRAPH_POISONED, _TOKENIZER_POISONED = 30, 31


def _overwrite_middle(directory: Path) -> None:
    graph = directory / FLOAT_GRAPH
    content = bytearray(graph.read_bytes())
    content[: len(content) // 2] = b"\xff" * (len(content) // 2)
    _rewrite(graph, bytes(content))


def _cut_in_half(directory: Path) -> None:
    graph = directory / FLOAT_GRAPH
    _rewrite(graph, graph.read_bytes()[: graph.stat().st_size // 2])


def _name_another_label(directory: Path) -> None:
    _change_json(directory / DESCRIPTION, lambda content: content["labels"].append("Neutral"))


def _put_another_graph(directory: Path) -> None:
    tensor = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    shapes = [tensor(name, onnx.TensorProto.FLOAT, [None, 2]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "another", shapes[:1], shapes[1:])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    _rewrite(directory / FLOAT_GRAPH, model.SerializeToString())


def _remove(name: str) -> Spoil:
    return lambda directory: (directory / name).unlink()


def _rewrite(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def _change_json(file: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    _rewrite(file, json.dumps(content).encode())


SPOILT: dict[str, tuple[str, Spoil]] = {
    "corrupt": ("half of whose graph is overwritten", _overwrite_middle),
    "half-copied": ("whose graph is half there", _cut_in_half),
    "wrong-labels": ("with more labels than its graph has", _name_another_label),
    "wrong-graph": ("with a graph of another shape", _put_another_graph),
    "no-tokenizer": ("without its tokenizer", _remove(TOKENIZER)),
    "no-bundle-json": ("without bundle.json", _remove(DESCRIPTION)),
}


def _promoted(number: int, spoil: Spoil) -> Callable[[Target], None]:
    def cause(target: Target) -> None:
        serves = target.served.repository.deployed()
        spoil(target.publish_like(number))
        told = target.promote(number, status=409)
        assert str(number) in told
        assert target.served.version() == serves == target.served.repository.deployed()

    return cause


def _deployed(number: int, spoil: Spoil) -> Callable[[Target], None]:
    """Deployed while it was whole, and spoilt while nothing ran, as by a disk that failed."""

    def cause(target: Target) -> None:
        serves = target.served.repository.deployed()
        directory = target.publish_like(number)
        target.references.learn(number, directory)
        target.promote(number)
        target.served.stop()
        spoil(directory)
        target.is_over()
        target.served.start()
        assert target.served.version() == serves == target.served.repository.deployed()

    return cause


def _tear_config(target: Target) -> None:
    config = target.served.repository.model / "config.pbtxt"
    content = config.read_text()
    config.write_text(content[: len(content) // 3])


def _torn_config_at_start(target: Target) -> None:
    serves = target.served.repository.deployed()
    target.served.stop()
    _tear_config(target)
    target.is_over()
    target.served.start()
    assert target.served.version() == serves == target.served.repository.deployed()


def _torn_config(target: Target) -> None:
    serves = target.served.repository.deployed()
    _tear_config(target)
    target.triton().kill()
    target.is_over()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if target.served.is_ready() and target.served.repository.deployed() == serves:
            return
    raise AssertionError(f"config.pbtxt does not name version {serves} again")


def _poison_graph(directory: Path) -> None:
    """A word whose token the graph has no embedding of."""
    _change_json(directory / TOKENIZER, lambda content: content["model"]["vocab"].update({POISON: 10_000_000}))


def _poison_tokenizer(directory: Path) -> None:
    """No token for what is unknown, so that the tokenizer fails where it meets it; digits are known."""

    def change(content: Any) -> None:
        vocabulary = content["model"]["vocab"]
        unknown = vocabulary.pop("[UNK]")
        vocabulary["[WAS-UNK]"] = unknown
        vocabulary |= {f"{start}{digit}": unknown for start in ("", "##") for digit in range(10)}
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[UNK]"]

    _change_json(directory / TOKENIZER, change)


def _poisoned(number: int, poison: Spoil, text: str) -> Callable[[Target], None]:
    """Such texts come among the others, alone and in lists."""

    def cause(target: Target) -> None:
        before = target.served.repository.deployed()
        assert before is not None
        directory = target.publish_like(number)
        poison(directory)
        target.references.learn(number, directory)
        target.promote(number)
        url = target.served.url
        for count in range(20):
            alone = httpx.post(f"{url}/predict/live", json={"text": f"good {text} {count}"}, timeout=60)
            assert alone.status_code == 422, f"alone it is answered {alone.status_code}: {alone.text}"
            texts = ["good", f"{text} {count}", f"terrible {count}"]
            listed = httpx.post(f"{url}/predict/batch", json={"texts": texts}, timeout=60)
            assert listed.status_code == 422, f"in a list it is answered {listed.status_code}: {listed.text}"
            assert [error["field"] for error in listed.json()["errors"]] == ["texts[1]"]
            assert httpx.get(f"{url}/health/ready", timeout=60).is_success
        target.promote(before)

    return cause


FAULTS = [
    *(
        Fault(f"promote-{name}", f"a version {what} is promoted", _promoted(number, spoil), _REFUSED)
        for number, (name, (what, spoil)) in enumerate(SPOILT.items(), start=_FIRST_BAD)
    ),
    Fault(
        "text-crashes-graph",
        "texts on which the graph fails come among others",
        _poisoned(_GRAPH_POISONED, _poison_graph, POISON),
        "cannot be classified",
    ),
    *(
        Fault(
            f"start-{name}",
            f"at the start, a version {what} is deployed",
            _deployed(number, SPOILT[name][1]),
            "does not load|is broken",
            cuts_connections=True,
        )
        for number, name, what in (
            (20, "half-copied", SPOILT["half-copied"][0]),
            (21, "wrong-labels", SPOILT["wrong-labels"][0]),
            (22, "no-tokenizer", SPOILT["no-tokenizer"][0]),
        )
    ),
    Fault(
        "config-torn-at-start",
        "at the start, config.pbtxt is half there",
        _torn_config_at_start,
        "config.pbtxt",
        cuts_connections=True,
    ),
    Fault("config-torn", "config.pbtxt is half there, and Triton is killed", _torn_config, "config.pbtxt"),
    Fault(
        "text-crashes-tokenizer",
        "texts on which the tokenizer fails come among others",
        _poisoned(_TOKENIZER_POISONED, _poison_tokenizer, UNKNOWN),
        "cannot be classified",
    ),
]
