"""A training in several processes: the result of one, one that records, and nothing lost when one of them is killed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from common.errors import PipelineError
from common.settings import Settings
from serving.backend.cpu import instruction_sets
from tests.e2e.conftest import PROJECT, free_ports
from tests.trainer.test_fine_tune import make_learner, write_texts
from trainer.dataset import load_dataset
from trainer.fine_tune import FineTuned, fine_tune
from trainer.processes import Processes
from trainer.record import TrainingRecord

pytestmark = pytest.mark.full

(COMMAND,) = re.findall(r"^```bash\n(.*)\n```", (PROJECT / "docs/training.md").read_text(), flags=re.MULTILINE)
_IN_PARTS = """
import sys

import app
from trainer import batches

batches.MOST_TOKENS = 64
sys.exit(app.main(sys.argv[1:]))
"""
"""Passes a batch in parts, whose number may differ between the processes."""
_KILLED = """
import os, pathlib, signal, sys
import app
from trainer.batches import TokenizedTexts
read, training = TokenizedTexts.__getitem__, pathlib.Path(os.environ["SENTIMENT_STATE_DIR"], "training")
def read_or_die(texts, position):
    if os.environ["RANK"] == "1" and list(training.glob("*/checkpoint-10/trainer_state.json")):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(texts, position)
TokenizedTexts.__getitem__ = read_or_die
sys.exit(app.main(["train"]))
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That drops no units: which those are depends on the number of processes."""
    directory = make_learner(tmp_path_factory.mktemp("encoder"))
    config = json.loads((directory / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def settings(tmp_path: Path, encoder: Path) -> Settings:
    write_texts(tmp_path)
    # Of 340 texts, 35 are held out. For the last of 305 in an epoch there is one process, and none for the other.
    rows = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join(rows[:341]))
    return Settings(
        train_data=tmp_path / "train.csv",
        val_data=tmp_path / "val.csv",
        base_model=str(encoder),
        state_dir=tmp_path / "state",
        model_dir=tmp_path / "model",
        model_repository=tmp_path / "triton_repo",
        learning_rate=1e-4,
        batch_size=16,
        epochs=2,
    )


def environment(settings: Settings) -> dict[str, str]:
    own = {f"SENTIMENT_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_unset=True).items()}
    return {name: value for name, value in os.environ.items() if not name.startswith("SENTIMENT_")} | own


def torchrun(settings: Settings, script: Path = PROJECT / "app.py") -> subprocess.CompletedProcess[str]:
    """The command of the documentation, with its output."""
    words = shlex.split(COMMAND)
    assert words[0] == "torchrun"
    words = [str(script) if word == "app.py" else word for word in words[1:]]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=PROJECT,
        env=environment(settings) | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )


def losses(tuned: FineTuned) -> list[float]:
    return [entry["loss"] for entry in tuned.history if "loss" in entry]


def recorded(settings: Settings, name: str) -> dict[int, float]:
    """A metric of the one training that MLflow knows, by step."""
    client = MlflowClient(settings.mlflow_uri)
    run = client.get_run(TrainingRecord.load(settings.model_dir).run_id)
    assert len(client.search_runs([run.info.experiment_id])) == 1
    return {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}


def assert_result_of(settings: Settings, one: FineTuned) -> None:
    """What several processes recorded and saved is what one process found."""
    # Training in bfloat16 rounds each process's share of a batch to 8 bits.
    error = 5e-3 if "amx_bf16" in instruction_sets() else 2e-3
    assert list(recorded(settings, "loss").values()) == pytest.approx(losses(one), abs=error)
    macro_f1 = {entry["step"]: entry["eval_macro_f1"] for entry in one.history if "eval_macro_f1" in entry}
    assert recorded(settings, "eval_macro_f1") == pytest.approx(macro_f1, abs=0.02)
    weights = load_file(settings.model_dir / "model.safetensors")
    for name, expected in one.model.state_dict().items():
        assert torch.allclose(weights[name], expected, atol=error), name


def test_two_processes_give_the_model_of_one_and_the_first_records_it(settings: Settings, tmp_path: Path) -> None:
    one = fine_tune(
        settings.model_copy(update={"state_dir": tmp_path / "one"}),
        load_dataset(settings),
    )

    script = tmp_path / "parts.py"
    script.write_text(_IN_PARTS)
    ended = torchrun(settings, script)

    assert ended.returncode == 0, ended.stdout
    assert_result_of(settings, one)
    for message in ("in each of 2 processes", "texts): accuracy", "Trained version 1"):
        assert ended.stdout.count(message) == 1, ended.stdout
    assert list((settings.state_dir / "training").iterdir()) == []


def test_a_killed_process_ends_all_and_the_next_command_resumes(settings: Settings, tmp_path: Path) -> None:
    dataset = load_dataset(settings)
    one = fine_tune(settings.model_copy(update={"state_dir": tmp_path / "one"}), dataset)
    script = tmp_path / "killed.py"
    script.write_text(_KILLED)

    killed = torchrun(settings, script)

    assert killed.returncode == 1
    assert re.search(r"^error: .*Run the same command again: the training resumes", killed.stdout, re.MULTILINE)
    assert "Signal 9 (SIGKILL)" in killed.stdout
    assert not settings.model_dir.exists()
    (training,) = (settings.state_dir / "training").iterdir()
    assert [path.name for path in training.iterdir()] == ["checkpoint-10"]

    # In one process it goes on from there as well.
    shutil.copytree(settings.state_dir, tmp_path / "copy")
    assert losses(fine_tune(settings.model_copy(update={"state_dir": tmp_path / "copy"}), dataset)) == pytest.approx(
        losses(one), abs=2e-3
    )
    resumed = torchrun(settings)
    assert resumed.returncode == 0, resumed.stdout
    assert resumed.stdout.count("Resuming the interrupted training at step 10 of ") == 1
    assert_result_of(settings, one)


def test_a_process_with_other_data_ends_all(settings: Settings, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text(settings.train_data.read_text() + "\ngood good terrible,Positive\n")
    port = str(free_ports())
    processes = [
        subprocess.Popen(
            [sys.executable, PROJECT / "app.py", "train"],
            env=environment(settings.model_copy(update={"train_data": data}))
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, data in enumerate((settings.train_data, other))
    ]
    told = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert "error: Process 1 of the training has other data or settings than the first one" in told[1]
    assert "error: Process 0 of 2 of the training lost the connection to another" in told[0]
    assert not settings.model_dir.exists()


def test_a_batch_that_cannot_be_divided_is_told() -> None:
    assert Processes(rank=1, count=2).share(16) == 8
    with pytest.raises(PipelineError, match=r"16 texts \(SENTIMENT_BATCH_SIZE\).* 3 processes\. .*such as 18\."):
        Processes(rank=1, count=3).share(16)
