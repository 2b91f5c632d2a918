# The gateway, without what trains, exports and runs models. Built from the root of the repository:
#
#   docker build -f deploy/images/gateway.Dockerfile -t sentiment-gateway .

# Another registry's, or another Python from 3.11 to 3.13.
ARG PYTHON_IMAGE=python:3.12.15-slim
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements-gateway.lock /build/
# The image itself needs no pip.
RUN python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install -r /build/requirements-gateway.lock

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 sentiment && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data sentiment \
    && install -d -o sentiment -g sentiment /data /models
COPY --from=build /opt/venv /opt/venv
COPY app.py command_line.py serve.py deploy/images/is_up.py /app/
COPY common /app/common
COPY gateway /app/gateway
COPY lifecycle /app/lifecycle
COPY serving /app/serving
COPY storage /app/storage
COPY tables /app/tables
COPY trainer /app/trainer
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SENTIMENT_HOME=/data \
    SENTIMENT_HOST=0.0.0.0 \
    SENTIMENT_MODEL_REPOSITORY=/models
# A package that is missing is missed here.
RUN PYTHONPATH=/app python -c "import serve, gateway.auth.key_commands"
USER 10001:10001
# The runtime state of a gateway lies in SENTIMENT_HOME.
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=15s --start-period=180s \
    CMD ["python", "/app/is_up.py", "http://127.0.0.1:8000/health/ready"]
ENTRYPOINT ["python", "/app/app.py"]
CMD ["gateway"]
