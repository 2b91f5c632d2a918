# NVIDIA's Triton with the packed_onnx backend. Built from the root of the repository:
#
#   docker build -f deploy/images/triton.Dockerfile -t sentiment-triton .
#   docker build -f deploy/images/triton.Dockerfile -t sentiment-triton-gpu --build-arg ONNXRUNTIME=onnxruntime-gpu==1.31.1 .
#
# 26.11 was the newest release when this was written; docs/moving-to-a-newer-triton.md says how to move on. The client in
# requirements.lock is that of 26.09 (2.73), the newest on PyPI then, which speaks the same protocol. Unlike the bundled
# build its Python backend takes NumPy 2 as it is. There is no smaller published image with a Python backend; NVIDIA's
# compose.py makes one.

ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.11-py3
# hadolint ignore=DL3006
FROM ${TRITON_IMAGE} AS build
# As requirements.lock has it, or another build or version of it, as the one for CUDA 13.
ARG ONNXRUNTIME=onnxruntime
# As requirements.lock has it, or another one: numpy==1.26.4 for a Triton such as 24.10 whose Python backend needs NumPy 1.
ARG TRITON_NUMPY=
COPY requirements.lock deploy/images/triton-requirements.txt /build/
# With this image's own Python, so that the packages fit the one that the backend runs in.
RUN sed -nE "s/^numpy==.*/${TRITON_NUMPY:-&}/; /^[A-Za-z0-9_.-]+==/p" /build/requirements.lock > /build/constraints.txt \
    && python3 -m pip install --no-cache-dir --target /opt/sentiment/packages -c /build/constraints.txt \
        -r /build/triton-requirements.txt "$ONNXRUNTIME"

# hadolint ignore=DL3006
FROM ${TRITON_IMAGE}
COPY --from=build /opt/sentiment/packages /opt/sentiment/packages
COPY deploy/images/is_answering.py deploy/images/start_triton.sh /opt/sentiment/
COPY common /opt/sentiment/common
COPY serving /opt/sentiment/serving
COPY serving/backend/packed_onnx/model.py /opt/tritonserver/backends/packed_onnx/model.py
# The engine divides the cores; more threads would only get in each other's way. (What sounds like a token is none.)
# hadolint ignore=DL3064
ENV PYTHONPATH=/opt/sentiment/packages:/opt/sentiment \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    TOKENIZERS_PARALLELISM=false
RUN python3 -c "import onnxruntime, openvino, serving.backend.variant_choice, serving.backend.engine" \
    && groupadd --gid 10001 sentiment && useradd --uid 10001 --gid 10001 --no-create-home sentiment \
    && install -d -o sentiment -g sentiment /models
USER 10001:10001
EXPOSE 8001 8002
HEALTHCHECK --interval=10s --timeout=15s --start-period=300s \
    CMD ["python3", "/opt/sentiment/is_answering.py", "ready"]
# Ends at once where there is no SENTIMENT_TRITON_KEY.
ENTRYPOINT ["/opt/sentiment/start_triton.sh"]
# Started before there is a version, it ends: whoever starts it waits for /models/sentiment/config.pbtxt.
CMD ["--model-repository=/models", \
     "--model-control-mode=explicit", \
     "--load-model=sentiment", \
     "--disable-auto-complete-config", \
     "--grpc-address=0.0.0.0", \
     "--grpc-port=8001", \
     "--metrics-address=0.0.0.0", \
     "--metrics-port=8002", \
     "--http-address=127.0.0.1", \
     "--http-port=8003", \
     "--exit-timeout-secs=30", \
     "--backend-config=python,stub-timeout-seconds=300"]
