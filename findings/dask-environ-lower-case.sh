#!/usr/bin/env bash
# Expected: DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON__OMP_NUM_THREADS=4 gives workers OMP_NUM_THREADS=4: a DASK_ variable
#   sets the option that it names, and this option holds the environment of workers.
# Happens: workers get omp_num_threads=4, which nothing reads, and OMP_NUM_THREADS=1 as before. Names of options are made
#   lower case on the way, and those below pre-spawn-environ are names of variables. A configuration file keeps them.
# Library: distributed 2026.8.0, dask 2026.8.0
# Source: "Configuration" in Dask's documentation (a DASK_ variable sets an option, double underscores nest); collect_env()
#   in dask/config.py; _get_env_variables() in distributed/nanny.py
# Output:
#   threads that workers are told of: {'OMP_NUM_THREADS': '1', 'omp_num_threads': '4'}
source "$(dirname "${BASH_SOURCE[0]}")/venv.bash"
unset OMP_NUM_THREADS
export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON__OMP_NUM_THREADS=4
run_python distributed==2026.8.0 dask==2026.8.0 <<'PY'
import os

from distributed import Client, LocalCluster


def told():
    return {name: value for name, value in os.environ.items() if name.lower() == "omp_num_threads"}


if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        threads = dict(sorted(client.submit(told).result().items()))
    print("threads that workers are told of:", threads)
    assert threads == {"OMP_NUM_THREADS": "1", "omp_num_threads": "4"}
PY
