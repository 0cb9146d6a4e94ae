"""The token that tells hosts apart in shared folders."""

from __future__ import annotations

import os
from types import SimpleNamespace

from basnet_torch.host import HOST, host_token


def test_the_token_is_of_the_host(tmp_path, monkeypatch):
    boot = tmp_path / "boot_id"
    boot.write_text("a\n")
    first = host_token(boot)
    assert first == host_token(boot) != HOST
    assert len(first) == len(HOST) == 8
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="another"))
    assert host_token(boot) != first
    boot.write_text("b\n")
    assert len({first, host_token(boot), host_token(tmp_path / "none")}) == 3
