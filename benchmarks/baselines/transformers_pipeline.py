"""A simple alternative server: FastAPI and a `transformers` pipeline, on torch or, with optimum, on ONNX Runtime.

Usage: `transformers_pipeline.py MODEL PORT [optimum]`. With `optimum`, MODEL is a directory of `export --standard`.
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoTokenizer, pipeline


class Request(BaseModel):
    """A request with one text."""

    text: str


def create_app(model: str, with_optimum: bool) -> FastAPI:
    """Create the app that serves the model in the directory `model`."""
    if with_optimum:
        from optimum.onnxruntime import ORTModelForSequenceClassification

        loaded = ORTModelForSequenceClassification.from_pretrained(model)
        classify = pipeline("text-classification", model=loaded, tokenizer=AutoTokenizer.from_pretrained(model))
    else:
        classify = pipeline("text-classification", model=model, device="cpu")
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/predict/live")
    def predict(request: Request) -> dict[str, dict[str, dict[str, object]]]:
        answer = classify(request.text, truncation=True)[0]
        return {"predictions": {"label": {"0": answer["label"]}, "score": {"0": round(answer["score"], 4)}}}

    return app


if __name__ == "__main__":
    app = create_app(sys.argv[1], with_optimum=sys.argv[3:] == ["optimum"])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
