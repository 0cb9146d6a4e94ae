"""The driver of `--cluster`: plan, dispatch, journal and sum up.

A run is planned as on one machine and keeps the same journal, so the same command resumes after the death of anything,
with `--cluster` or without; a video without it needs `--resume`.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from basnet_runtime.cluster.buckets import listed, remove, shown, url_of
from basnet_runtime.cluster.dask_workers import DaskWorkers, check_address
from basnet_runtime.cluster.dispatch import WorkerDied, dispatch
from basnet_runtime.cluster.facts import Facts, Probe, Refused, differences, model_fact
from basnet_runtime.command.buckets import JOURNAL_FOLDER, plan_in_buckets, uses_buckets
from basnet_runtime.command.chunk import Item, Order, Outcome, greet, run_chunk, stop
from basnet_runtime.command.config import RunConfig
from basnet_runtime.command.jobs import Failure, Job, ProgressListener, failure_of
from basnet_runtime.command.journal import Journal
from basnet_runtime.command.run import Summary, composer_of, plan_run
from basnet_runtime.command.run_video import segments_of
from basnet_runtime.machine.threads import allowed_threads
from basnet_torch.device import Device
from basnet_torch.errors import MediaError, UsageError
from basnet_torch.files import RUN, remove_partials, remove_scratch

__all__ = ["Driver", "run_on_cluster", "slots_of"]

_SECONDS_A_CHUNK = 5.0
_FIRST_CHUNK, _LARGEST_CHUNK = 4, 64
_PROBES = 16
_TELL_SECONDS = 10.0
_PATIENCE = 60.0  # seconds without a worker


def run_on_cluster(
    config: RunConfig,
    listener: ProgressListener,
    summary: Summary | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Process all inputs on the workers of `config.cluster`.

    Without one, in buckets, by this process.

    Args:
        config: What to run.
        listener: Receives progress callbacks.
        summary: Filled during the run.
        tell: Receives a line on the progress now and then, and at the end.

    Raises:
        UsageError: The plan cannot be carried out; nothing has been done.
        BackendUnavailable: There is no cluster, a worker does not fit, or all workers are lost.
    """
    summary = summary if summary is not None else Summary()
    if config.cluster is not None:
        check_address(config.cluster)
    exists: Callable[[Path], bool] = Path.exists
    if uses_buckets(config):
        plan, journal, exists = plan_in_buckets(config)
    else:
        plan, journal = plan_run(config)
    if not summary.begin(plan):
        return summary
    if config.kind.image is not None:
        composer_of(config)  # a background that cannot be read is reported before any work
    if any(job.stream for job in plan.jobs):
        raise UsageError(f"{plan.jobs[0].source}: a camera or network stream runs on one machine; leave --cluster out")
    with nullcontext() if journal is None else journal.writing(plan.jobs), _probes(plan.jobs) as probe:
        order = Order(
            run=RUN, config=_sent(config), local=config.cluster == "local", probe=probe, expected=_own_model(config)
        )
        driver = Driver(
            config=config, order=order, journal=journal, listener=listener, summary=summary, tell=tell, exists=exists
        )
        jobs, folder = list(plan.jobs), plan.folder
        if config.cluster is not None and journal is not None and folder is not None and url_of(folder):
            with suppress(OSError):  # of drivers that were killed; their journal says what they had begun
                found = (str(path) for path, _, _ in listed(folder / JOURNAL_FOLDER, recursive=False))
                remove_claims([path for path in found if path.endswith(".claim")])
        del plan  # of a million jobs each is let go of when it is done
        driver.run(jobs, folder)
    return summary


def _sent(config: RunConfig) -> RunConfig:
    """The configuration as workers get it: absolute paths, threads that nothing there decides, its own GPU."""
    kind = config.kind if config.kind.image is None else replace(config.kind, image=config.kind.image.absolute())
    device = Device(config.device.kind) if config.cluster == "local" else config.device
    model = None if config.model is None else config.model.absolute()
    threads = config.threads or (1 if config.cluster else None)
    sent = replace(config, inputs=(), output=None, chunk=None)
    return replace(sent, kind=kind, model=model, threads=threads, device=device)


def _own_model(config: RunConfig) -> Facts | None:
    """The model that workers have to have, where the driver sees its file."""
    if config.cluster is None or config.model is None or not config.model.is_file():
        return None
    return Facts(node="the driver", model=model_fact(config.model))


def slots_of(config: RunConfig) -> list[dict[str, str]]:
    """Return the environment of each worker started here: one a GPU, or one a thread.

    Raises:
        UsageError: There are fewer GPUs than workers.
    """
    device = config.device
    if device.on_cpu:
        return [{}] * (config.workers or max(1, allowed_threads() // (config.threads or 1)))
    gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if not gpus:
        gpus = sorted((path.name[6:] for path in Path("/dev").glob("nvidia[0-9]*")), key=int)
    if device.index is not None:
        gpus = gpus[device.index : device.index + 1]
    if not gpus or (config.workers or 1) > len(gpus):
        raise UsageError(
            f"--device {device} with {config.workers or 1} workers: there are {len(gpus)} GPUs here; one worker a GPU"
        )
    return [{"CUDA_VISIBLE_DEVICES": name} for name in gpus[: config.workers]]


@contextmanager
def _probes(jobs: Sequence[Job]) -> Iterator[Probe]:
    """What every worker has to see, during the run."""
    sources: dict[Path, Job] = {}
    folders: dict[Path, None] = {}
    for job in jobs:
        if len(sources) < _PROBES and job.source.is_file():
            sources.setdefault(job.source.parent, job)
        if len(folders) < _PROBES and url_of(job.target) is None:
            folders[job.target.parent] = None
    del jobs, job
    targets = [folder.absolute() / f".{RUN}-probe.partial" for folder in folders]
    try:
        for path in targets:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(RUN)
            except OSError as error:
                raise MediaError(f"{path.parent}: cannot be written: {error.strerror}") from error
        yield Probe(
            sources=tuple((str(each.source.absolute()), each.source.stat().st_size) for each in sources.values()),
            targets=tuple(map(str, targets)),
            token=RUN,
        )
    finally:
        for path in targets:
            with suppress(OSError):
                path.unlink()


def remove_claims(claims: Iterable[str]) -> None:
    """Remove claims, those of no worker yet as well.

    A store that does not answer is not asked again.
    """
    for claim in map(Path, claims):
        try:
            (remove if url_of(claim) else Path.unlink)(claim)
        except FileNotFoundError:
            continue
        except OSError:
            return


@dataclass(kw_only=True, slots=True)
class Driver:
    """One run; `open_engine` returns what runs pieces, by default the cluster."""

    config: RunConfig
    order: Order
    journal: Journal | None
    listener: ProgressListener
    summary: Summary
    tell: Callable[[str], None]
    exists: Callable[[Path], bool]
    open_engine: Callable[[], Any] | None = None
    folder: Path | None = None
    pictures: list[Job] = field(default_factory=list)
    others: deque[Job] = field(default_factory=deque)
    parts: deque[Item] = field(default_factory=deque)  # of the video in hand, and videos to join
    open_parts: Counter[str] = field(default_factory=Counter)  # of videos, by source
    out: dict[str, Job] = field(default_factory=dict)  # handed out, by the absolute path of the source
    claims: Counter[str] = field(default_factory=Counter)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    total: int = 0
    done: int = 0
    failed: int = 0
    began: float = 0.0
    told: float = 0.0
    picture_seconds: float = 0.0
    numbers: int = 0

    def run(self, jobs: list[Job], folder: Path | None) -> None:
        """Hand out everything, and sum up.

        Args:
            jobs: What is to be done; the list is emptied.
            folder: Of the plan.
        """
        self.folder = folder
        self.total = len(jobs)
        self.others = deque(job for job in jobs if job.media != "picture")
        parents = {os.path.dirname(job.target) for job in jobs}  # noqa: PTH120 - of a million targets
        folders = {folder for folder in map(Path, parents) if not url_of(folder)}
        if self.others:
            jobs[:] = [job for job in jobs if job.media == "picture"]
        jobs.reverse()
        self.pictures = jobs
        if self.journal is not None:
            self.journal.buffered = True
        self.listener.started("pictures" if self.pictures else "videos", self.total)
        try:
            self.hand_out()
        finally:  # the workers have ended, or are through
            if self.config.cluster is not None:
                remove_claims(filter(None, self.claims))
                # Dask starts pieces of dead workers elsewhere without a word: who left half a file is not known.
                remove_partials(folders, {RUN}, own=True)
                remove_scratch()
        if self.config.cluster is not None:
            self.report(len(self.rows), last=True)

    def hand_out(self) -> None:
        """Give everything to the engine."""
        with (self.open_engine or self.engine)() as engine:
            self.began = self.told = time.monotonic()
            try:
                for items, answer in dispatch(self.take, engine, begin=self.begin, patience=_PATIENCE):
                    self.record(items, answer)
                    self.report(engine.ready())
            except KeyboardInterrupt:
                for _, answer in engine.interrupt():
                    if isinstance(answer, Outcome):
                        self.record((), answer)
                raise
            finally:
                self.summary.seconds = time.monotonic() - self.began
                self.summary.workers = list(self.rows.values()) if self.config.cluster else []

    def engine(self) -> _Here | DaskWorkers:
        """The workers of the cluster, or this process."""
        where = self.config.cluster
        if where is None:
            return _Here(self.order)
        engine = DaskWorkers(
            where,
            slots=slots_of(self.config) if where == "local" else (),
            greet=partial(greet, self.order),
            accept=self.accept,
            work=lambda: partial(run_chunk, self.order),
            stop=partial(stop, RUN),
            tell=self.tell,
        )
        if where != "local" and not engine.scheduler.startswith("tls://"):
            self.summary.notes.append(
                f"{engine.scheduler} has no authentication: who reaches it runs code there; tls:// has"
            )
        return engine

    def accept(self, facts: Facts) -> None:
        """Take a worker, or refuse it.

        Raises:
            Refused: It differs in what decides the results.
        """
        expected = self.order.expected
        notes = differences(facts, expected or facts)
        if self.config.same_bytes and notes:
            raise Refused(f"{notes[0]}; without --same-bytes it may work")
        new = [f"{note}; bytes may differ by a level" for note in notes]
        self.summary.notes += [note for note in new if note not in self.summary.notes]
        if expected is None or not expected.product:
            self.order = replace(self.order, expected=facts)
            self.summary.model, self.summary.runs_on = facts.model.rpartition(" ")[0], facts.runs_on

    def take(self, workers: int) -> tuple[Job | Item, ...]:
        """Take the next piece: pictures for seconds, segments of a video, or one job."""
        if not self.pictures:
            if not self.parts and self.others:
                job = self.others.popleft()
                if not (segments := segments_of(job, self.config)):
                    return (job,)
                self.share(job, segments, workers)
            while self.parts:
                part = self.parts.popleft()
                if str(part.job.source) in self.out:
                    return (part,)
                self.release(part)  # another part of its video has failed
            return ()
        count = self.config.chunk
        if count is None:
            count = _FIRST_CHUNK
            if self.picture_seconds:
                count = max(1, min(_LARGEST_CHUNK, round(_SECONDS_A_CHUNK / self.picture_seconds)))
            count = max(1, min(count, len(self.pictures) // (2 * workers)))  # so that all end at about one time
        taken = self.pictures[: -count - 1 : -1]
        del self.pictures[-count:]
        return tuple(taken)

    def share(self, job: Job, segments: int, workers: int) -> None:
        """Divide a video by the workers; skipping decodes, so few long parts cost less."""
        for item in self.begun((job,)):
            shares = min(segments, workers)
            borders = [segments * share // shares for share in range(shares + 1)]
            ranges = map(range, borders, borders[1:])
            self.parts += (replace(item, segments=part) for part in ranges)
            self.open_parts[str(item.job.source)] = self.claims[item.claim] = shares

    def begin(self, jobs: tuple[Job | Item, ...]) -> tuple[Item, ...]:
        """Journal the jobs of a piece and claim their targets; video parts have begun."""
        if any(isinstance(job, Item) for job in jobs):
            return tuple(job for job in jobs if isinstance(job, Item))
        return self.begun([job for job in jobs if isinstance(job, Job)])

    def begun(self, jobs: Sequence[Job]) -> tuple[Item, ...]:
        """Journal jobs and claim their targets."""
        self.numbers += 1
        first, claim = jobs[0].target, ""
        if url_of(first) and self.config.cluster:
            claim = str((self.folder or first.parent) / JOURNAL_FOLDER / f"{RUN}-{self.numbers}.claim")
        elif self.config.cluster:
            claim = str(first.with_name(f".{RUN}-{self.numbers}.partial").absolute())
        items = []
        for job in jobs:
            ours = self.journal is not None and self.journal.was_begun(job)
            if self.exists(job.target) and not (ours or self.config.overwrite):
                self.fail(job, MediaError(f"{shown(job.target)} exists already; --overwrite replaces it"))
                continue
            if self.journal is not None:
                self.journal.begin(job)
            sent = Job(source=job.source.absolute(), target=job.target.absolute(), media=job.media)
            self.out[str(sent.source)] = job
            items.append(Item(job=sent, claim=claim, ours=ours))
        self.claims[claim] += len(items)
        if self.journal is not None:
            self.journal.flush()
        return tuple(items)

    def record(self, items: Sequence[Item], answer: Outcome | Exception) -> None:
        """Sum up what came back."""
        if isinstance(answer, Outcome):
            self.add(answer)
        if self.journal is not None:
            self.journal.flush()
        for item in items:
            source = str(item.job.source)
            if item.segments is not None and isinstance(answer, Outcome) and source in self.out:
                self.open_parts[source] -= 1
                if not self.open_parts[source]:
                    self.claims[item.claim] += 1
                    self.parts.append(replace(item, segments=None, joins=True))
            elif (job := self.out.pop(source, None)) is not None:
                self.fail(job, _reason(job, answer))
            self.release(item)

    def release(self, item: Item) -> None:
        """Remove the claim when all its items are through."""
        self.claims[item.claim] -= 1
        if not self.claims[item.claim]:
            del self.claims[item.claim]
            remove_claims(filter(None, [item.claim]))

    def add(self, outcome: Outcome) -> None:
        """Count results and failures of a piece."""
        found, facts = outcome.summary, outcome.facts
        if not self.summary.model:
            self.summary.model, self.summary.runs_on = facts.model.rpartition(" ")[0], facts.runs_on
        row = self.rows.setdefault(
            facts.node,
            {"node": facts.node, "runs_on": facts.runs_on, "done": 0, "failed": 0, "seconds": 0.0, "cpu_seconds": 0.0},
        )
        row["seconds"] = round(row["seconds"] + found.seconds, 4)
        row["cpu_seconds"] = round(row["cpu_seconds"] + outcome.cpu_seconds, 4)
        row["done"] += len(found.results)
        row["failed"] += len(found.failures)
        self.summary.frames += found.frames
        self.summary.spend(found.seconds_by_stage)
        while found.results:
            result = found.results.pop()
            job = self.out.pop(str(result.source))
            self.summary.results.append(replace(result, source=str(shown(job.source)), target=str(shown(job.target))))
            self.done += 1
            if self.journal is not None:
                self.journal.done(job, outcome.sizes.get(str(result.target)))
            if job.media == "picture":
                self.picture_seconds = found.seconds / max(1, found.frames)
            self.listener.advanced()
        for failure in found.failures:
            failed = self.out.pop(str(failure.source), None)
            if failed is None:
                continue  # another part of the video has failed
            self.fail(failed, failure.error.replace(str(failure.source), str(shown(failed.source))))

    def fail(self, job: Job, error: Exception | str) -> None:
        """Note that an input gives no result."""
        source = shown(job.source)
        failure = Failure(source=source, error=error) if isinstance(error, str) else failure_of(source, error)
        self.summary.failures.append(failure)
        self.failed += 1
        if self.journal is not None:
            self.journal.failed(job)

    def report(self, workers: int, *, last: bool = False) -> None:
        """Tell how far the run is."""
        now = time.monotonic()
        if last or now - self.told >= _TELL_SECONDS:
            self.told = now
            rate = f"{self.done / max(1e-9, now - self.began):.1f} pictures a second"
            self.tell(f"{self.done} of {self.total} done, {self.failed} failed, {workers} workers, {rate}")


class _Here:
    """This process as the engine: one piece after the other."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._answers: list[tuple[int, Any]] = []

    def ready(self) -> int:
        return 1

    def awaited(self) -> bool:
        return False

    def start(self, number: int, items: tuple[Any, ...]) -> None:
        self._answers = [(number, run_chunk(self._order, items))]

    def wait(self, seconds: float) -> list[tuple[int, Any]]:  # noqa: ARG002 - it has run already
        return self._answers

    def interrupt(self) -> list[tuple[int, Any]]:
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def _reason(job: Job, answer: Any) -> Exception:
    """Why a job came back without result or failure of its own."""
    if isinstance(answer, WorkerDied):
        return MediaError(
            f"{shown(job.source)}: the worker died over it {answer.deaths} times (it ends itself when nothing happens "
            "for 15 minutes); leave it out, or run it alone to see why"
        )
    if isinstance(answer, Exception):
        return answer
    return MediaError(f"{shown(job.source)}: came back without a result; run it again")
