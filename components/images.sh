#!/usr/bin/env bash
# Builds the images of the tools and of TorchServe from the commit that is checked out:
#
#   components/images.sh [NAME...]      all of them, or those named: cover, train, ..., serving
#
#   RSP_IMAGE_REGISTRY   where they will be pushed to (default ghcr.io/rsp-tools); pushing is up to you
#   RSP_BASE_IMAGE       another base than the Dockerfiles' python:3.11-slim-bookworm, as one with CUDA
#   RSP_BUILD_ARGS       more arguments for docker build, as "--push" or "--build-arg PIP_INDEX_URL=..."
#   PYTHON               a Python that has setuptools-scm (default .venv/bin/python)
#
# It prints the names of the images. Their tag is the version with - for +, which is also what `rsp pipeline submit`
# asks for when it runs from the same commit.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -n $(git status --porcelain) ]]; then
  git status --short >&2
  echo "images hold what is committed: commit the changes above, or stash them (git stash -u)" >&2
  exit 1
fi
version=$("${PYTHON:-.venv/bin/python}" -m setuptools_scm)
tag=${version//+/-}
revision=$(git rev-parse HEAD)
registry=${RSP_IMAGE_REGISTRY:-ghcr.io/rsp-tools}
registry=${registry%/}

names=("$@")
if [[ ${#names[@]} == 0 ]]; then
  for file in components/*/component.py; do names+=("$(basename "$(dirname "$file")")"); done
  names+=(serving)
fi
for name in "${names[@]}"; do
  if [[ $name == serving ]]; then
    recipe=(--file serving/Dockerfile)
  elif [[ -f components/$name/component.py ]]; then
    recipe=(--file components/Dockerfile --build-arg "TOOL=$name")
  else
    echo "no image is called $name" >&2
    exit 2
  fi
  recipe+=(--build-arg "RSP_VERSION=$version" --build-arg "RSP_REVISION=$revision")
  if [[ -n ${RSP_BASE_IMAGE:-} ]]; then recipe+=(--build-arg "BASE_IMAGE=$RSP_BASE_IMAGE"); fi
  image=$registry/rsp-$name:$tag
  # The context is the commit itself: files that git ignores stay out.
  # shellcheck disable=SC2086 # a list of arguments
  git archive HEAD | docker build --tag "$image" "${recipe[@]}" ${RSP_BUILD_ARGS:-} - >&2
  echo "$image"
done
