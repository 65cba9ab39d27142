#!/usr/bin/env bash
# Builds the images of the tools and of TorchServe from the commit that is checked out:
#
#   components/images.sh [--push] [NAME...]      all of them, or those named: cover, train, ..., serving
#
#   --push               push them, and the bases that they stand on, when all are built
#   RSP_IMAGE_REGISTRY   where they are pushed to (default ghcr.io/rsp-tools)
#   RSP_TORCH            the build of torch: cuda (default; PyPI's, which runs on processors, too), or the label of
#                        another one, as cpu or cu130, with an index that has it in RSP_BUILD_ARGS
#   RSP_BASE_IMAGE       what the bases stand on, instead of python:3.11-slim-bookworm
#   RSP_BASE_REFRESH     any text, as 2026-11: with another one the bases are built again, with Debian's updates
#   RSP_BUILD_ARGS       more arguments for docker build, as "--build-arg PIP_INDEX_URL=..."
#   RSP_SBOM             where to write what is in each image, CycloneDX (default build/sbom)
#   PYTHON               a Python that has setuptools-scm (default .venv/bin/python)
#
# It prints the names of the images. Their tag is the version with - for +, which is also what `rsp pipeline submit`
# asks for when it runs from the same commit. The bases have a tag of their own, a digest of what is in them: where
# the engine or the registry has them they are not built again, and all images share their layers.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -n $(git status --porcelain) ]]; then
  git status --short >&2
  echo "images hold what is committed: commit the changes above, or stash them (git stash -u)" >&2
  exit 1
fi
python=${PYTHON:-.venv/bin/python}
version=$("$python" -m setuptools_scm)
tag=${version//+/-}
revision=$(git rev-parse HEAD)
registry=${RSP_IMAGE_REGISTRY:-ghcr.io/rsp-tools}
registry=${registry%/}
below=${RSP_BASE_IMAGE:-}
torch=${RSP_TORCH:-cuda}
sbom=${RSP_SBOM:-build/sbom}

push=
names=()
for word in "$@"; do
  if [[ $word == --push ]]; then push=yes; else names+=("$word"); fi
done
if [[ ${#names[@]} == 0 ]]; then
  for file in components/*/component.py; do names+=("$(basename "$(dirname "$file")")"); done
  names+=(serving)
fi
for name in "${names[@]}"; do
  if [[ $name != serving && ! -f components/$name/component.py ]]; then
    echo "no image is called $name" >&2
    exit 2
  fi
done

# BuildKit does not copy each layer to commit it, which halves the time. Older clients ask for it by this variable
# alone; newer ones take it by themselves where they have buildx, and fail with the variable where they have not.
case $(docker version --format '{{.Client.Version}}' 2>/dev/null) in
  19.* | 20.*) export DOCKER_BUILDKIT=${DOCKER_BUILDKIT:-1} ;;
esac

# The context is the commit itself: files that git ignores stay out.
build() {
  # shellcheck disable=SC2086 # a list of arguments
  git archive HEAD | docker build ${RSP_BUILD_ARGS:-} "$@" - >&2
}

base_tag=$("$python" components/bases.py tag "$below" "$torch" "${RSP_BASE_REFRESH:-}")
bases=()
# Leaves the name of the base data or torch in $base, and builds it where neither engine nor registry has it.
need_base() {
  base=$registry/rsp-$1:$base_tag
  if [[ " ${bases[*]} " == *" $base "* ]]; then return; fi
  if ! docker image inspect "$base" >/dev/null 2>&1 && ! docker pull --quiet "$base" >/dev/null 2>&1; then
    build --file components/bases.Dockerfile --target "$1" --tag "$base" --build-arg "TORCH=$torch" \
      ${below:+--build-arg "BASE_IMAGE=$below"}
  fi
  bases+=("$base")
}

images=()
declare -A alike # names of images that hold the same packages, by what they stand on
need_base data
code=$registry/rsp-code:$tag
build --file components/code.Dockerfile --tag "$code" --build-arg "BASE=$base" --build-arg "RSP_VERSION=$version"
for name in "${names[@]}"; do
  if [[ $name == serving ]]; then
    on=serving
    need_base torch
    recipe=(--file serving/Dockerfile)
  else
    on=$("$python" components/bases.py base "$name")
    need_base "$on"
    recipe=(--file components/Dockerfile --build-arg "TOOL=$name")
  fi
  image=$registry/rsp-$name:$tag
  build --tag "$image" --build-arg "BASE=$base" --build-arg "CODE=$code" --build-arg "RSP_VERSION=$version" \
    --build-arg "RSP_REVISION=$revision" "${recipe[@]}"
  alike[$on]+=" $name"
  images+=("$image")
  echo "$image"
done

mkdir -p "$sbom"
for words in "${alike[@]}"; do
  read -ra same <<<"$words"
  docker run --rm --interactive --network none --entrypoint python3 "$registry/rsp-${same[0]}:$tag" - \
    "$version" "${same[@]/#/rsp-}" <components/sbom.py | tar --extract --directory "$sbom"
done

if [[ -n $push ]]; then
  for image in "${bases[@]}" "${images[@]}"; do docker push "$image" >&2; done
fi
