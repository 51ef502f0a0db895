# Images of the service. The default target, worker-cpu, is the whole of it on a machine without a GPU.
#
#   docker build --target api .          what HTTP needs: no torch
#   docker build --target worker .       CUDA and TensorRT. The CUDA libraries come with torch; the host needs a driver
#                                        and the NVIDIA container toolkit
#   docker build .                       worker-cpu; add --build-arg TORCH_INDEX=URL with the CPU index that the install
#                                        page of pytorch.org names, or torch comes as its CUDA build, several GB larger

FROM python:3.11.14-slim-bookworm AS base
ENV DARKROOM_HOST=0.0.0.0 \
    DARKROOM_DATA=/data \
    PATH=/opt/darkroom/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    SVT_LOG=1
RUN python -m venv /opt/darkroom \
    && useradd --system --uid 10001 --home-dir /data darkroom \
    && install --directory --owner=darkroom /data /artifacts
WORKDIR /build
# Without the sources this installs the dependencies alone, in a layer that a change of the sources leaves as it is.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --constraint constraints.txt '.[redis,s3]'
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as http; http.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["darkroom"]
CMD ["serve"]

FROM base AS api
# Without torch it can keep no worker.
ENV DARKROOM_WORKERS=0
COPY kernels kernels
COPY models models
COPY engines engines
COPY service service
RUN pip install --no-deps --force-reinstall .
WORKDIR /data
USER 10001
VOLUME /data

FROM base AS worker
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton compiles a launcher for each kernel when it is first used.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --constraint constraints.txt '.[tensorrt,worker,video]'
COPY kernels kernels
COPY models models
COPY engines engines
COPY service service
RUN pip install --no-deps --force-reinstall .
WORKDIR /data
USER 10001
RUN darkroom engines build --all
VOLUME /data

FROM base AS worker-cpu
ARG TORCH_INDEX=""
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[worker,video]'
COPY kernels kernels
COPY models models
COPY engines engines
COPY service service
RUN pip install --no-deps --force-reinstall .
WORKDIR /data
USER 10001
RUN darkroom engines build --all
VOLUME /data
