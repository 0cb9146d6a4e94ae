"""The OpenAPI document against the server: Schemathesis sends what the document allows, and what it does not."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("schemathesis", reason="needs schemathesis")


@pytest.mark.slow
def test_the_server_does_what_its_document_says(server, tmp_path):
    command = [
        str(Path(sys.executable).with_name("st")),
        "run",
        f"{server.url}/openapi.json",
        "--max-examples=15",
        "--seed=1",
        "--no-color",
        # A page that the picture lacks, a picture that is none: no schema can say what makes those invalid.
        "--exclude-checks=positive_data_acceptance",
    ]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout[-3000:]
    assert "7 selected / 7 total" in answer.stdout
