"""Run configuration: every option of `basnet-run`, light to import.

A start has not loaded numpy yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from basnet_runtime.cluster.buckets import is_bucket
from basnet_runtime.kinds import OutputKind, PictureFormat
from basnet_runtime.media.video.options import VideoOptions
from basnet_runtime.model_options import ModelOptions
from basnet_torch.errors import UsageError
from basnet_torch.options import GROUP, argument, check, option

__all__ = ["RunConfig", "Shown"]

_MOST_FEATHER = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(ModelOptions):
    """What to run and how; each field's help says what it is."""

    inputs: Sequence[str] = field(
        metadata=argument(
            "INPUT...", "Pictures, video, folders, globs in quotes, camera:0, rtsp://..., -.", typed=list[str]
        )
    )
    output: str | None = field(
        default=None,
        metadata=option("Folder, file for one input, frames/%06d.png, or -. Default: beside each.", "-o", "--output"),
    )
    kind: OutputKind = field(
        default_factory=OutputKind,
        metadata=option(
            "mask, cutout, overlay, side, color:#rrggbb, image:FILE or blur.", parse=OutputKind.parse, shown="mask"
        ),
    )
    threads: int | None = field(
        default=None, metadata=option("Threads of the network. Default: all allowed, 1 a worker.", min=1)
    )
    batch: int = field(default=1, metadata=option("Pictures or frames per network run.", min=1))
    overwrite: bool = field(default=False, metadata=option("Replace existing outputs.", "--overwrite"))
    skip_existing: bool = field(default=False, metadata=option("Skip inputs that have outputs.", "--skip-existing"))
    keep_suffix: bool = field(default=False, metadata=option("a.jpg becomes a.jpg.mask.png.", "--keep-suffix"))
    picture_format: PictureFormat | None = field(
        default=None, metadata=option("Format of pictures' results. Default: by -o, else png.", "--format")
    )
    recursive: bool = field(default=False, metadata=option("Take subfolders too.", "--recursive"))
    threshold: float | None = field(
        default=None,
        metadata=option(
            "Binarize masks: foreground from this share on, such as 0.5.",
            must=("above 0 and at most 1", lambda share: 0 < share <= 1),
        ),
    )
    feather: float = field(
        default=0.0,
        metadata=option(
            "Blur the mask's edge by this many pixels.",
            must=(f"0 to {_MOST_FEATHER} pixels", lambda pixels: 0 <= pixels <= _MOST_FEATHER),
        ),
    )
    refine_edges: bool = field(
        default=False, metadata=option("Refine the mask's edges by the picture's.", "--refine-edges")
    )
    stabilize: bool = field(
        default=False, metadata=option("Stabilize the masks of a video against flicker.", "--stabilize")
    )
    empty_weak: bool = field(
        default=False,
        metadata=option("Empty masks where nothing salient was found. Default: keep, with a warning.", "--empty-weak"),
    )
    video: VideoOptions = field(default_factory=VideoOptions, metadata=GROUP)
    page: int | None = field(
        default=None, metadata=option("Page of TIFF, HEIF, AVIF and ICO, from 1. Default: the main picture.", min=1)
    )
    max_pixels: int = field(default=300_000_000, metadata=option("Refuse larger pictures.", min=1))
    cluster: str | None = field(
        default=None,
        metadata=option("Spread over workers: local, tcp://HOST:PORT, tls://HOST:PORT or SCHEDULER.json.", "--cluster"),
    )
    workers: int | None = field(
        default=None, metadata=option("Workers of --cluster local. Default: one per thread or GPU.", min=1)
    )
    chunk: int | None = field(
        default=None, metadata=option("Pictures per piece of work. Default: about 5 s of work.", min=1, max=64)
    )
    same_bytes: bool = field(
        default=False, metadata=option("Refuse workers whose results may differ by a level.", "--same-bytes")
    )

    def __post_init__(self) -> None:
        check(self)
        if self.cluster is None:
            in_buckets = any(map(is_bucket, (*self.inputs, self.output or "")))
            named = (("--workers", self.workers), ("--chunk", self.chunk), ("--same-bytes", self.same_bytes))
            for name, value in named:
                if value and not (name == "--chunk" and in_buckets):
                    raise UsageError(f"{name} {value}: goes with --cluster; add it")
        elif self.workers is not None and self.cluster != "local":
            raise UsageError(f"--workers {self.workers}: goes with --cluster local; leave it out")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What the command prints, and whether it keeps watching for files."""

    watch: bool = field(default=False, metadata=option("Watch folders and process new files, until Ctrl-C.", "--watch"))
    as_json: bool = field(default=False, metadata=option("Print the summary as JSON on stdout.", "--json"))
    quiet: bool = field(default=False, metadata=option("Print nothing but warnings and errors.", "--quiet"))
