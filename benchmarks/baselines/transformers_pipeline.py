"""A simple alternative server: FastAPI and a `transformers` pipeline. Usage: `transformers_pipeline.py MODEL PORT`."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Request(BaseModel):
    """A request with one text."""

    text: str


def create_app(model: str) -> FastAPI:
    """Create the app that serves the model in the directory `model`."""
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
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
