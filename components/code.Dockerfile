# The code, made once for all images: nothing but the files that they add to their base. `make images` builds it, and
# it is never pushed; by hand:
#
#   docker build -f components/code.Dockerfile --build-arg BASE=rsp-data:mine --build-arg RSP_VERSION=1.2.3 \
#     -t rsp-code:1.2.3 .
#
# Any base will do, as both have one Python.
ARG BASE

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
# Nothing of this stage but /code reaches an image.
# hadolint ignore=DL3002
USER 0
WORKDIR /build
COPY constraints.txt ./
# hadolint ignore=DL3013
RUN python3 -m pip install --no-cache-dir --constraint constraints.txt 'setuptools>=77' 'setuptools-scm>=10'
# The context has no .git, so the version comes from outside.
ARG RSP_VERSION
RUN test -n "${RSP_VERSION}" \
 || { echo "give --build-arg RSP_VERSION=<version>, or use make images, which takes it from git" >&2; exit 1; }
COPY pyproject.toml LICENSE README.md ./
COPY src ./src
COPY shared ./shared
COPY serving ./serving
COPY components ./components
COPY pipelines ./pipelines
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_RSP_TOOLS="${RSP_VERSION}" \
    python3 -m pip install --no-cache-dir --no-build-isolation --no-deps --root /code . \
 && printf '%s\n' '#!/bin/sh' \
      "exec rsp \"\${RSP_TOOL:?is empty: give docker build --build-arg TOOL=<tool>, as cover}\" \"\$@\"" \
      > /code/usr/local/bin/rsp-tool \
 && chmod 755 /code/usr/local/bin/rsp-tool
# Checked here, and once: a step that runs something leaves a layer of its own, and other times in each image.
RUN PYTHONPATH=$(echo /code/usr/local/lib/python3*/*-packages) && export PYTHONPATH \
 && python3 -c "import os, rsp; assert rsp.__version__ == os.environ['RSP_VERSION'], rsp.__version__" \
 && for file in components/*/component.py; do \
      tool=$(basename "$(dirname "${file}")") && /code/usr/local/bin/rsp "${tool}" --help > /dev/null || exit 1; \
    done

FROM scratch
COPY --from=build /code/ /code/
USER 10001
