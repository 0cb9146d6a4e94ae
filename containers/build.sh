#!/usr/bin/env bash
# Build the image with docker, or with buildah where no docker runs: containers/build.sh [EXTRAS]
#   TOOL=buildah        the tool to build with
#   BASE=IMAGE          another base of Debian 12; BASE_TAR=FILE makes one of a root file system, so that no registry is needed:
#                       mmdebstrap --variant=minbase bookworm base.tar
#   CA=FILE             certificates for pip, behind a proxy that looks into TLS
# buildah as root without overlay or user namespaces: STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot containers/build.sh
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' basnet_torch/__init__.py)
if [ -n "${TOOL:-}" ]; then
  tool=$TOOL
elif docker info >/dev/null 2>&1; then
  tool=docker
elif command -v buildah >/dev/null; then
  tool=buildah
else
  echo "build: neither a docker that runs nor buildah is there. Install one, such as: apt install buildah" >&2
  exit 3
fi
arguments=(build --file containers/Containerfile --tag "basnet-deploy:$version")
if [ $# -gt 0 ]; then arguments+=(--build-arg "EXTRAS=$1"); fi
if [ -n "${CA:-}" ]; then arguments+=(--secret "id=ca,src=$CA"); fi
if [ -n "${BASE_TAR:-}" ]; then
  BASE=localhost/basnet-base:12
  if [ "$tool" = docker ]; then
    docker import "$BASE_TAR" "$BASE"
  else
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$BASE_TAR" /
    buildah commit --quiet --rm "$container" "$BASE"
  fi
fi
if [ -n "${BASE:-}" ]; then arguments+=(--build-arg "BASE=$BASE"); fi
"$tool" "${arguments[@]}" .
echo "built basnet-deploy:$version"
