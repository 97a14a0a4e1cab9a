# docs/manifests.md has the commands. BASE needs Python 3.11 or newer with venv; a torch of the
# version in constraints.txt that is in it is taken.
ARG BASE=python:3.11-slim
FROM ${BASE}

# Of pip, where packages are not to come from its default index.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG EXTRAS=ray

# Triton compiles its launchers with gcc. Versions are the base's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --no-log-init --uid 10001 --user-group --create-home moe \
    && python -m venv --system-site-packages /opt/moe
ENV PATH=/opt/moe/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0

WORKDIR /app
COPY constraints.txt ./
RUN python -m pip install --no-cache-dir -c constraints.txt torch
COPY pyproject.toml README.md ./
COPY conf conf
COPY moe moe
COPY runners runners
COPY analysis analysis
RUN python -m pip install --no-cache-dir -c constraints.txt -e ".${EXTRAS:+[$EXTRAS]}" \
    && python -m compileall -q moe runners analysis \
    && install --directory --owner moe --group moe outputs

# By number: Kubernetes' runAsNonRoot cannot look up a name.
USER 10001:10001
CMD ["python", "runners/bench.py", "--help"]
