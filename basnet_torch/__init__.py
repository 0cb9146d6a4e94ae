"""The PyTorch reference of BASNet: network, losses, data, trainer, checkpoints.

Importing this package, `basnet_torch.spec` or `basnet_torch.errors` loads no torch.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
