"""What is recorded about the machine, and whose commit."""

import json
import re
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version

from basnet_benchmarks.environment import commit_of, environment
from basnet_torch import __version__


def git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(("git", "-C", folder, *identity, *arguments), check=True, capture_output=True)


def test_environment_names_machine_versions_and_time():
    found = environment(3)
    assert found.threads == 3
    assert found.processor
    assert found.processors >= 1
    assert found.libraries["numpy"] == version("numpy")
    assert "tensorrt-not-there" not in found.libraries
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found.date)).total_seconds()) < 60
    assert json.loads(json.dumps(asdict(found)))["threads"] == 3


def test_commit_is_that_of_the_checkout_and_says_when_it_is_not_clean(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("x = 1\n")
    git(tmp_path, "init")
    assert commit_of(file) == f"basnet-deploy {__version__}"  # not tracked: an installed copy in somebody's repository
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "-m", "first")
    clean = commit_of(file)
    assert re.fullmatch("[0-9a-f]{40}", clean)
    file.write_text("x = 2\n")
    assert commit_of(file) == f"{clean}+changes"


def test_commit_outside_git_is_the_packages_version(tmp_path):
    assert commit_of(tmp_path / "module.py") == f"basnet-deploy {__version__}"
