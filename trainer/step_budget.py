"""How many training steps fit in a bounded time."""

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from trainer.batches import EpochSampler, TokenizedTexts, parts_of
from trainer.processes import Processes

_WARM_UP, _TIMED = 1, 4
"""Batches before the timing, whose first run is slower, and timed batches."""
_SHARE_OF_STEPS = 0.9
"""The rest of the time is for the optimizer's updates."""
_STEPS = "steps"


def affordable_steps(
    directory: Path,
    model: PreTrainedModel,
    texts: TokenizedTexts,
    batch_size: int,
    seed: int,
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
    pad_to: int,
    bf16: bool,
    seconds: float,
) -> int:
    """Return how many steps of `batch_size` texts fit in `seconds`; at least 1.

    A few batches are timed, which `collate` pads to a multiple of `pad_to` tokens. The result is kept in `directory`,
    because a training that resumes needs the same number: the learning rate decays to 0 at the last step.
    """
    kept = directory / _STEPS
    if kept.exists() and (number := kept.read_text(encoding="ascii")).isdecimal():  # a kill may have left it empty
        return int(number)
    sampler = EpochSampler(batch_size, texts.lengths, seed, Processes.started())
    batches = list(islice(DataLoader(texts, batch_size, sampler=sampler, collate_fn=collate), _WARM_UP + _TIMED))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)  # type: ignore[arg-type]
    model.train()
    taken_s = 0.0
    tokens = 0
    for place, batch in enumerate(batches):
        started = time.perf_counter()
        for part in parts_of({name: values.to(device) for name, values in batch.items()}):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = model(**part).loss
            loss.backward()
            loss.detach().item()  # waits for the device
        if place >= min(_WARM_UP, len(batches) - 1):
            taken_s += time.perf_counter() - started
            tokens += batch["input_ids"].numel()
    model.zero_grad()
    # Padded as the timed batches are.
    step_tokens = batch_size * sum(-(-length // pad_to) * pad_to for length in texts.lengths) / len(texts.lengths)
    steps = max(1, int(_SHARE_OF_STEPS * seconds * tokens / taken_s / step_tokens))
    directory.mkdir(parents=True, exist_ok=True)
    kept.write_text(str(steps), encoding="ascii")
    return steps
