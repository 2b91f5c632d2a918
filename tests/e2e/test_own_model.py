"""A classifier made elsewhere, with labels of its own: imported, served, and loaded by other tools."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.processes import running
from serving.model_repo.bundle import Bundle
from tests.conftest import make_encoder
from tests.e2e.conftest import PROJECT, free_ports, run_block, wait_for
from tests.lifecycle.conftest import Served, make_served, serving
from tests.lifecycle.gates.test_run_gates import divided, sentences
from tests.lifecycle.learning import write_rows
from tests.pages import block, blocks

pytestmark = pytest.mark.full

PAGE = "docs/how-to-own-model.md"
IMPORT, LABELS, HUB = (line for line in "\n".join(blocks(PAGE)).splitlines() if line.startswith("python app.py import"))
LOVE, TERRIBLE = "I love this product!", "This is terrible."
BASELINES = PROJECT / "benchmarks" / "baselines"


class Shell:
    """A directory with `app.py` in which the commands of the page run as they stand, and what serves there."""

    def __init__(self, directory: Path) -> None:
        # The page's files are at their usual places; no data file is set, so none must be there.
        made = make_served(directory, directory, 0, SENTIMENT_PRECISION="float32", SENTIMENT_RUNTIME="onnxruntime")
        usual = ("SENTIMENT_STATE_DIR", "SENTIMENT_TRAIN_DATA", "SENTIMENT_VAL_DATA")
        self.served = replace(
            made, environment={name: made.environment[name] for name in made.environment if name not in usual}
        )
        self.directory = directory
        (directory / "app.py").symlink_to(PROJECT / "app.py")
        self.classifier = self.make(directory / "my-classifier", {"0": "ham", "1": "spam"})

    def make(self, directory: Path, labels: dict[str, str]) -> Path:
        """A random DistilBERT that gives either label to half of the sentences."""
        divided(make_encoder("distilbert", directory), directory)
        config = json.loads((directory / "config.json").read_text())
        named = {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
        (directory / "config.json").write_text(json.dumps(config | named))
        return directory

    def run(self, command: str) -> str:
        return run_block(command, self.directory, self.served.environment, timeout_s=900)

    def probabilities(self, texts: list[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """By `transformers`, without calibration."""
        model = AutoModelForSequenceClassification.from_pretrained(self.classifier)
        tokenizer = AutoTokenizer.from_pretrained(self.classifier)
        with torch.inference_mode():
            logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        found: np.ndarray[tuple[int, int], np.dtype[np.float32]] = logits.softmax(dim=-1).numpy()
        return found

    def labels(self, texts: list[str]) -> list[str]:
        return [("ham", "spam")[index] for index in self.probabilities(texts).argmax(axis=1)]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The classifier is imported where nothing is deployed and no data are."""
    found = Shell(tmp_path_factory.mktemp("own"))
    printed = found.run(IMPORT)
    assert "Version 1 is deployed; `python app.py` serves it." in printed
    assert "There is no validation file" in printed
    return found


def ask(served: Served, texts: list[str]) -> list[str]:
    answer = served.ask("POST", "/predict/batch", json={"texts": texts})
    assert answer.is_success, answer.text
    return list(answer.json()["predictions"]["label"].values())


def test_an_imported_classifier_serves_and_another_takes_over_if_it_passes_the_gates(shell: Shell) -> None:
    served = shell.served
    bundle = Bundle.load(served.repository.version_directory(1))
    assert (bundle.labels, bundle.metrics, bundle.base_model) == (("ham", "spam"), {}, "./my-classifier")
    assert [str(proof.variant) for proof in bundle.proofs if not proof.refused] == ["onnxruntime float32"]
    drawn = sentences()[:400]
    # No near ties, which the rounding of a runtime decides.
    texts = [text for text, scores in zip(drawn, shell.probabilities(drawn), strict=True) if scores.max() > 0.6]
    with serving(served):
        answer = served.ask("POST", "/predict/live", json={"text": LOVE})
        assert answer.headers["x-model-version"] == "1"
        index = int(shell.probabilities([LOVE]).argmax())
        assert answer.json()["predictions"]["label"]["0"] == bundle.labels[index]
        assert answer.json()["predictions"]["score"]["0"] == pytest.approx(shell.probabilities([LOVE]).max(), abs=1e-3)
        assert ask(served, texts) == shell.labels(texts)
        # No training is begun over it.
        assert [event["kind"] for event in served.ask("GET", "/events").json()] == ["deployed"]
        assert "No check: version 1 was imported, and there are no data" in shell.run("python app.py check")
        with pytest.raises(AssertionError, match="no such file"):
            shell.run("python app.py data")
        assert not (shell.directory / "train_sentiment_data.csv").exists(), "sample data would be other data"
        # There is nothing to compare both on.
        assert "thresholds, comparison, slices, flips cannot judge it, so version 1 stays" in shell.run(IMPORT)

        # With the labels that it gives, it is always right; the one with exchanged labels never is.
        write_rows(shell.directory / "val_sentiment_data.csv", list(zip(texts, shell.labels(texts), strict=True)))
        assert "Version 3 passed every gate and is deployed." in shell.run(IMPORT)
        assert served.version() == 3
        assert served.process is not None
        assert Bundle.load(served.repository.version_directory(3)).metrics["accuracy"] == 1.0
        checked = shell.run("python app.py check")
        assert re.search(rf"^validation +{len(texts)} +1\.0000", checked, flags=re.MULTILINE), checked
        with pytest.raises(AssertionError, match=r"Version 4 was rejected by thresholds, .*; version 3 stays deployed"):
            shell.run(IMPORT + " --labels spam,ham")
        assert served.version() == 3
        with pytest.raises(AssertionError, match=r"cannot be used \(unknown label"):
            shell.run(LABELS)


def test_a_name_on_the_hub_is_downloaded_or_said_to_be_out_of_reach(shell: Shell, tmp_path: Path) -> None:
    environment = dict(shell.served.environment) | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    with pytest.raises(AssertionError, match=r"the Hugging Face hub cannot be reached .*hf download distilbert"):
        run_block(HUB, shell.directory, environment)


def python(code: str, directory: Path, **environment: str) -> str:
    """Run a block of the page as a notebook elsewhere would: nothing of this project can be imported."""
    named = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, "-I" if not environment else "-P", "-c", code],
        cwd=directory,
        env=named | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_mlflow_loads_the_version_and_serves_it(shell: Shell) -> None:
    (code,) = [code for code in blocks(PAGE, "python") if "mlflow" in code]
    printed = python(code, shell.directory)
    assert re.search(r"label +score +probability_ham +probability_spam", printed)
    assert [line.split()[1] for line in printed.splitlines()[1:3]] == shell.labels([LOVE, TERRIBLE])
    requirements = next(shell.directory.glob(".sentiment/mlflow-artifacts/*/artifacts/model/requirements.txt"))
    assert {line.partition("==")[0] for line in requirements.read_text().split()} == {
        *("mlflow", "numpy", "onnxruntime", "pandas", "tokenizers")
    }
    port = str(free_ports(1))
    started, asked = block(PAGE, "MLFLOW_TRACKING_URI"), block(PAGE, "curl localhost:5001")
    environment = dict(os.environ) | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        ["bash", "-c", f"exec env {started.replace('5001', port)}"],
        cwd=shell.directory,
        env=environment,
        start_new_session=True,
    )
    try:

        def answers() -> bool:
            assert process.poll() is None, "mlflow models serve ended"
            try:
                return httpx.get(f"http://127.0.0.1:{port}/ping").is_success
            except httpx.TransportError:
                return False

        wait_for(answers, 240, "mlflow models serve to answer")
        answer = json.loads(shell.run(asked.replace("5001", port).replace("curl ", "curl -s ")))
        assert [row["label"] for row in answer["predictions"]] == shell.labels([LOVE])
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


def test_optimum_and_a_pipeline_of_transformers_load_the_standard_export(shell: Shell, tmp_path: Path) -> None:
    shell.run(block(PAGE, "python app.py export --standard"))
    with pytest.raises(AssertionError, match="is not an empty directory"):
        shell.run(block(PAGE, "python app.py export --standard"))
    packages = tmp_path / "packages"
    # Whatever these need besides is in the environment of the tests.
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), "-r"]
    subprocess.run([*install, str(BASELINES / "optimum.txt")], check=True, capture_output=True)
    (code,) = [code for code in blocks(PAGE, "python") if "optimum" in code]
    environment = {"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"}
    printed = python(code, shell.directory, **environment)
    found = [answer["label"] for answer in json.loads(printed.replace("'", '"'))]
    assert found == shell.labels([LOVE, TERRIBLE])
    port = free_ports(1)
    script = [sys.executable, str(BASELINES / "transformers_pipeline.py"), str(shell.directory / "standard-model")]
    with running([*script, str(port), "optimum"], port, tmp_path, "optimum", environment) as baseline:
        baseline.wait_until_answering("/health", 120)
        answer = httpx.post(f"{baseline.url}/predict/live", json={"text": LOVE}, trust_env=False)
    assert answer.json()["predictions"]["label"]["0"] == shell.labels([LOVE])[0]
