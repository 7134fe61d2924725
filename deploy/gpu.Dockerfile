# Training on an NVIDIA GPU: torch brings its CUDA libraries, the host its driver and nvidia-container-toolkit.
#   docker build --file deploy/gpu.Dockerfile --tag windfire/gpu:0.1.0 .
# The network is used for packages of the pinned tree only (constraints.txt).
ARG PYTHON=3.11.16-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/windfire
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The packages that are needed before the source, so that a change of the source leaves this layer alone.
ARG EXTRAS=gpu
RUN python -c "import os, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print('\n'.join([*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], *project['dependencies'], \
*(one for extra in os.environ['EXTRAS'].split() for one in project['optional-dependencies'][extra])]))" > requirements.txt
RUN /opt/windfire/bin/pip install --constraint constraints.txt -r requirements.txt
COPY . .
RUN /opt/windfire/bin/pip install --no-deps --no-build-isolation . \
    && /opt/windfire/bin/python -c "from offline.session import java_home; java_home()" \
    && install -m 0755 deploy/spark.sh /opt/windfire/bin/windfire-spark \
    && printf '#!/opt/windfire/bin/python\n' | cat - deploy/slot.py > /opt/windfire/bin/windfire-slot \
    && printf '#!/opt/windfire/bin/python\n' | cat - deploy/health.py > /opt/windfire/bin/windfire-health \
    && chmod 0755 /opt/windfire/bin/windfire-slot /opt/windfire/bin/windfire-health

FROM python:${PYTHON}
RUN groupadd --gid 10001 windfire && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp windfire \
    && install -d -o windfire -g windfire /run/windfire /var/cache/windfire /var/lib/windfire \
        /var/lib/windfire/registry /var/lib/windfire/work /var/lib/windfire/exported /var/lib/windfire/front-ends \
        /var/lib/windfire/engines /var/lib/windfire/spark /var/lib/windfire/reports
COPY --from=build /opt/windfire /opt/windfire
ENV PATH=/opt/windfire/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/tmp/numba HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    WINDFIRE_REGISTRY=/var/lib/windfire/registry WINDFIRE_STATE=/var/lib/windfire/state WINDFIRE_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/windfire
EXPOSE 8080
# Ready = a bundle is loaded and answers. The first start compiles loops, which takes a while.
HEALTHCHECK --interval=10s --timeout=4s --start-period=90s --retries=3 \
    CMD ["windfire-health", "http://127.0.0.1:8080/readyz"]
CMD ["windfire", "serve"]
