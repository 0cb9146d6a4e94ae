# Sourced by every finding. Runs the Python program on standard input in a temporary virtual environment.
set -euo pipefail

# Usage: run_python PACKAGE==VERSION... <<'PY'
# Exits 0 if the program ends well, 1 if it does not, 3 if the packages cannot be installed.
run_python() {
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  cd "$folder"
  cat > finding.py
  # The pip of python3 installs into the environment, without compiling: much faster than a pip of its own.
  python3 -m venv --without-pip "$folder/venv"
  python3 -m pip --python "$folder/venv/bin/python" install --quiet --no-compile --disable-pip-version-check "$@" || exit 3
  # -I keeps PYTHONPATH and the project out; HOME keeps caches of the libraries in the temporary folder.
  HOME=$folder XDG_CACHE_HOME=$folder/cache "$folder/venv/bin/python" -I finding.py || exit 1
}
