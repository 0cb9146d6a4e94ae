"""`python -m basnet_torch` is `basnet-train`, which torchrun can start."""

from basnet_torch.train.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
