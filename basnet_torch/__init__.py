"""The PyTorch reference of BASNet: network, losses, data, trainer, checkpoints.

Importing this package, `basnet_torch.spec` or `basnet_torch.errors` loads no torch.
"""

from basnet_torch import telemetry as _telemetry  # noqa: F401 - sets what libraries read while they are imported

__all__ = ["__version__"]

__version__ = "0.1.0"
