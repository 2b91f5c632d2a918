"""What a fork of tests/commands.py need not import any more. Imported once, by the process that is forked."""

from app import prepare_libraries

prepare_libraries()

import mlflow.artifacts  # noqa: E402, F401
import onnxscript  # noqa: E402, F401
import torch.onnx._internal.exporter._core  # noqa: E402, F401
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, Trainer  # noqa: E402, F401

import export.export  # noqa: E402, F401
import lifecycle.jobs.check  # noqa: E402
import lifecycle.jobs.retrain  # noqa: E402
import lifecycle.jobs.scheduler  # noqa: E402, F401
import trainer.train  # noqa: E402, F401
