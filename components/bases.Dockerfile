# The two bases of all images: `data`, and `torch` on top of it. `make images` builds them where they are missing,
# under a tag that says what is in them; by hand:
#
#   docker build -f components/bases.Dockerfile --target data -t rsp-data:mine .
#   docker build -f components/bases.Dockerfile --target torch --build-arg TORCH=cpu -t rsp-torch:mine .
#
# pip takes another index or a folder of wheels from PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_FIND_LINKS.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Files of requirements: the layers below depend on their text, and not on the rest of pyproject.toml.
FROM ${BASE_IMAGE} AS requirements
WORKDIR /requirements
COPY pyproject.toml components/bases.py ./
RUN python3 bases.py requirements data > data.txt \
 && python3 bases.py requirements torch > torch.txt

FROM ${BASE_IMAGE} AS system
# PIP_BREAK_SYSTEM_PACKAGES: Debian's own Python (a base image made by debootstrap) refuses to be installed into
# otherwise. OMP_WAIT_POLICY, GOMP_SPINCOUNT: OPENMP of shared/parallel.py, which says why.
ENV OMP_WAIT_POLICY=PASSIVE \
    GOMP_SPINCOUNT=20000 \
    PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# libexpat1: the GDAL in rasterio's wheel needs it and slim images lack it. tini: a Python that is process 1 would
# not hear SIGTERM.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends libexpat1 tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/* /var/log/*.log /var/log/apt \
 && useradd --uid 10001 --create-home --home-dir /home/rsp rsp

# What pip installs, and what is left of it: a layer would keep what a later one removes.
FROM system AS packages
# Nothing of this stage but /packages reaches an image.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
WORKDIR /build
COPY constraints.txt components/slim.py ./
COPY --from=requirements /requirements/data.txt ./
# kfp's executor runs without any of kfp's own needs, which pin requests and protobuf: hence --no-deps.
# hadolint ignore=DL3013
RUN python3 -m pip install --root /packages --constraint constraints.txt --requirement data.txt \
 && python3 -m pip install --root /packages --constraint constraints.txt --no-deps kfp \
 && python3 slim.py --strip /packages/usr/local/lib/python3*/*-packages

FROM system AS data
COPY --from=packages /packages/ /
WORKDIR /opt/rsp
COPY constraints.txt components/slim.py ./
USER 10001
WORKDIR /home/rsp

FROM data AS torch
# cpu, cu130 ...: the build of torch, from an index or folder that has it; cuda: the one that PyPI has, which runs
# without a GPU, too. The version is that of constraints.txt: what trains is what exports and serves.
ARG TORCH=cuda
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
# The next step installs packages for all users.
# hadolint ignore=DL3002
USER 0
WORKDIR /opt/rsp
# libgomp1: torch.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/* /var/log/*.log /var/log/apt
# In a layer of its own: it is most of the image, and changes less often than what stands on it. Of two builds with
# one version pip would take any; `===` takes the one without a label.
RUN version=$(sed -n 's/^torch==//p' constraints.txt) \
 && case "${TORCH}" in cuda) wanted="torch===${version}" ;; *) wanted="torch==${version}+${TORCH}" ;; esac \
 && if ! python3 -m pip install --constraint constraints.txt "${wanted}"; then \
      echo "no ${wanted}: name an index that has it with --build-arg PIP_EXTRA_INDEX_URL=..., or a folder or page" \
           "of wheels with PIP_FIND_LINKS" >&2; exit 1; fi \
 && python3 slim.py /usr/local/lib/python3*/*-packages
COPY --from=requirements /requirements/torch.txt ./
RUN python3 -m pip install --constraint constraints.txt --requirement torch.txt \
 && python3 slim.py /usr/local/lib/python3*/*-packages

USER 10001
WORKDIR /home/rsp
