# vLLM 0.32.0 with the plug-in of docs/vllm.md; DEVICE is cpu (the tree that `make vllm-cpu` tests) or gpu.
#   docker build --file deploy/vllm.Dockerfile --build-arg DEVICE=cpu --tag windfire/vllm-cpu:0.32.0 .
# vLLM's own image has another Python than the 3.11 that Windfire is made for.
ARG PYTHON=3.11.16-slim-bookworm

FROM python:${PYTHON} AS build
ARG DEVICE=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/vllm
COPY serving/vllm_plugin/requirements-cpu.txt /src/
RUN case "${DEVICE}" in \
    cpu) /opt/vllm/bin/pip install --no-deps --extra-index-url "${TORCH_INDEX}" -r /src/requirements-cpu.txt ;; \
    gpu) /opt/vllm/bin/pip install vllm==0.32.0 ;; \
    *) echo "DEVICE is cpu or gpu, not ${DEVICE}" >&2; exit 2 ;; \
    esac
COPY . /src/
RUN /opt/vllm/bin/pip install --no-deps /src /src/serving/vllm_plugin \
    && { printf '#!/opt/vllm/bin/python\n'; cat /src/deploy/health.py; } > /opt/vllm/bin/windfire-health \
    && chmod 0755 /opt/vllm/bin/windfire-health

FROM python:${PYTHON}
# Triton and vLLM's compiled kernels call a compiler at run time.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc g++ libnuma1 && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 windfire && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp windfire \
    && install -d -o windfire -g windfire /var/lib/windfire/exported
COPY --from=build /opt/vllm /opt/vllm
ENV PATH=/opt/vllm/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 \
    NUMBA_CACHE_DIR=/tmp/numba VLLM_NO_USAGE_STATS=1 VLLM_USE_V2_MODEL_RUNNER=0 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=4s --start-period=180s --retries=3 \
    CMD ["windfire-health", "http://127.0.0.1:8000/health"]
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server", "--host=0.0.0.0", "--port=8000", "--runner=pooling", \
    "--skip-tokenizer-init", "--no-enable-prefix-caching"]
