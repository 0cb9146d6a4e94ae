"""Salience: the score of a map, and the decision by the model's threshold.

    decision = SalienceThreshold(model.postprocess.empty_below)(map_hw)

The score is the value that the strongest thousandth of the map reaches: how sure the network is where it is surest,
without the chance of a single pixel. Of the scores tried (peak, means of the strongest 0.5, 1 and 5 %, self-weighted
mean, area, spread, contrast to the border) none told background from object better.
The threshold belongs to the weights (`Postprocess.empty_below`); `basnet-bench` chooses it on data.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GIVEN", "SalienceDecision", "SalienceLog", "SalienceThreshold", "salience_score"]

_SIDE = 512  # pixels: maps are smooth, so that of a larger one every n-th row and column says as much
_FADE = 0.85  # of the threshold: how far a stream's score must fall before what was found counts as lost


@dataclass(frozen=True, kw_only=True, slots=True)
class SalienceDecision:
    """Of one picture or frame.

    Attributes:
        score: 0..1, see `salience_score`.
        salient: Whether something was found; where not, the mask is weak: it is kept unless asked to be emptied.
    """

    score: float
    salient: bool


GIVEN = SalienceDecision(score=1.0, salient=True)  # of a mask that no network found


def salience_score(map_HW: NDArray[Any]) -> float:
    """Return the value, 0..1, that the strongest thousandth of a map reaches.

    The map is uint8 0..255 or float 0..1.

    >>> salience_score(np.array([[0, 0, 1], [0, 0, 1]], np.float32))
    1.0
    >>> salience_score(np.full((4, 4), 51, np.uint8))
    0.2
    """
    steps = (max(1, side // _SIDE) for side in map_HW.shape)
    values = map_HW[tuple(slice(None, None, step) for step in steps)].ravel()
    place = values.size - max(1, values.size // 1000)
    full = 255.0 if map_HW.dtype == np.uint8 else 1.0
    return float(np.partition(values, place)[place]) / full


class SalienceThreshold:
    """Decides by a threshold; with hysteresis in a stream, so that it does not blink."""

    def __init__(self, threshold: float, *, stream: bool = False) -> None:
        """`stream`: whether the maps that come are frames of one video, in order."""
        self._threshold = threshold
        self._stream = stream
        self._found = False

    def __call__(self, map_HW: NDArray[Any]) -> SalienceDecision:
        """The decision of a map that no stretching has touched."""
        score = salience_score(map_HW)
        needed = self._threshold * (_FADE if self._stream and self._found else 1.0)
        self._found = score >= needed
        return SalienceDecision(score=score, salient=self._found)

    @property
    def memory(self) -> dict[str, NDArray[Any]]:
        """What the next decision depends on."""
        return {"found": np.array(self._found)}

    @staticmethod
    def memories() -> list[dict[str, NDArray[Any]]]:
        """Every memory there can be, that of a beginning first."""
        return [{"found": np.array(found)} for found in (False, True)]

    def recall(self, memory: dict[str, NDArray[Any]]) -> None:
        """Continue from the `memory` of another threshold."""
        self._found = bool(memory.get("found", False))


_NONE_WEAK: list[list[int]] = []  # shared by all that have none; never written to


class SalienceLog:
    """The decisions on one output's frames, four bytes a frame."""

    __slots__ = ("_scores", "_weak")  # a summary may hold a million

    def __init__(self) -> None:
        self._scores = array("f")
        self._weak: list[list[int]] = _NONE_WEAK

    def add(self, decision: SalienceDecision) -> None:
        """Note the next frame's."""
        index = len(self._scores)
        self._scores.append(decision.score)
        if decision.salient:
            return
        if self._weak and self._weak[-1][1] == index - 1:
            self._weak[-1][1] = index
        elif self._weak:
            self._weak.append([index, index])
        else:
            self._weak = [[index, index]]

    @property
    def weak_frames(self) -> int:
        """In how many frames nothing was found."""
        return sum(last - first + 1 for first, last in self._weak)

    @property
    def salient(self) -> bool:
        """Whether anything was found in at least one frame."""
        return len(self._scores) > self.weak_frames

    @property
    def score(self) -> float:
        """The highest of all frames; 0 without any."""
        return max(self._scores, default=0.0)

    def note(self, *, emptied: bool) -> str | None:
        """Say where nothing was found, and what became of those masks; or None.

        >>> log = SalienceLog()
        >>> log.add(SalienceDecision(score=0.25, salient=False))
        >>> log.note(emptied=False)
        'salient: false (score 0.250); its mask is kept, --empty-weak empties it'
        >>> log.add(SalienceDecision(score=0.75, salient=True))
        >>> log.note(emptied=True)
        'salient: false in 1 of 2 frames (highest score of all 0.750); their masks are empty'
        """
        if not self._weak:
            return None
        if len(self._scores) == 1:
            kept = "its mask is empty" if emptied else "its mask is kept, --empty-weak empties it"
            return f"salient: false (score {self.score:.3f}); {kept}"
        kept = "their masks are empty" if emptied else "their masks are kept, --empty-weak empties them"
        where = f"in {self.weak_frames} of {len(self._scores)} frames"
        return f"salient: false {where} (highest score of all {self.score:.3f}); {kept}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `salient`, `score`, each frame's score, which were weak.

        >>> log = SalienceLog()
        >>> for score in (0.1, 0.9, 0.2, 0.1):
        ...     log.add(SalienceDecision(score=score, salient=score > 0.5))
        >>> found = log.to_dict()
        >>> found["salient"], found["score"], found["frame_scores"]
        (True, 0.9, [0.1, 0.9, 0.2, 0.1])
        >>> found["weak_frames"], found["weak_spans"]
        (3, [[0, 0], [2, 3]])
        """
        whole = {"salient": self.salient, "score": round(self.score, 4)}
        if len(self._scores) == 1:
            return whole
        scores = [round(score, 4) for score in self._scores]
        spans = [list(span) for span in self._weak]
        return {**whole, "frame_scores": scores, "weak_frames": self.weak_frames, "weak_spans": spans}
