"""Do objects move as their words say? And how well could anybody know from the words alone?

Axes: frame, point, xyz. Motion is in one unit everywhere, usually normalised.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .tables import EvaluationError, Ratio

MIN_COSINE = 0.7
"""A direction is right above this, about 45 degrees."""

SIZE_RANGE = (0.25, 4.0)
"""A size is right within these factors."""

MIN_POINTS = 8
"""Objects that frame 0 shows with fewer points are not judged."""

_FLATNESS = 0.05
"""An axis along which an object is this much thinner than along its longest tells nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectMatch:
    """One object's predicted motion beside the expected one."""

    word: str
    """What the caption says of the object, or what kind of motion that is."""

    cosine: float
    """Between both motions, each as one vector over all points and frames. For a translation
    that is the cosine of directions; for a spin it is negative when the sense is wrong."""

    size: float
    """Length of the predicted vector over that of the expected one."""

    @property
    def is_right(self) -> bool:
        """Both direction and size are right."""
        return self.cosine > MIN_COSINE and SIZE_RANGE[0] <= self.size <= SIZE_RANGE[1]


def match_objects(
    predicted: Float[Tensor, "frame point 3"],
    expected: Float[Tensor, "frame point 3"],
    object_index: Int[Tensor, "point"],
    words: Sequence[str],
) -> list[ObjectMatch]:
    """Compare every object that is expected to move; `words[i]` belongs to `object_index` i.

    Objects that rest, or that show fewer than `MIN_POINTS` points, are left out.

    Raises:
        EvaluationError: an index has no word.
    """
    _check_words(object_index, words)
    matches = []
    for index, word in enumerate(words):
        mask = object_index == index
        if int(mask.sum()) < MIN_POINTS:
            continue
        ours, theirs = predicted[:, mask].double().flatten(), expected[:, mask].double().flatten()
        length = theirs.norm()
        if length == 0:
            continue
        cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=0)
        matches.append(
            ObjectMatch(word=word, cosine=float(cosine), size=float(ours.norm() / length))
        )
    return matches


def accuracy_by_word(matches: Iterable[ObjectMatch]) -> dict[str, Ratio]:
    """Share of objects whose motion is right, for each word."""
    counts: dict[str, Ratio] = {}
    for match in matches:
        one = Ratio(amount=float(match.is_right), reference=1.0)
        counts[match.word] = counts[match.word] + one if match.word in counts else one
    return dict(sorted(counts.items()))


class WordMotions:
    """What objects with the same words do, from examples: the oracle that knows only words.

    An object's motion is taken as affine in its points' offsets from the object's centre, frame
    by frame, so that turning and growing have a mean too. In normalised units that describes
    every rigid motion of an object that is small against its depth.
    """

    def __init__(self) -> None:
        self._motions: dict[str, list[Float[Tensor, "frame 4 3"]]] = {}

    def add(
        self,
        motion: Float[Tensor, "frame point 3"],
        offsets: Float[Tensor, "point 3"],
        object_index: Int[Tensor, "point"],
        words: Sequence[str],
    ) -> None:
        """Learn from a scene. `offsets` are positions in frame 0, in the units of the motion.

        Only differences of offsets within one object matter.

        Raises:
            EvaluationError: an index has no word.
        """
        _check_words(object_index, words)
        for index, word in enumerate(words):
            mask = object_index == index
            if int(mask.sum()) >= MIN_POINTS:
                self._motions.setdefault(word, []).append(
                    fit_affine(motion[:, mask], offsets[mask])
                )

    def mean(
        self,
        offsets: Float[Tensor, "point 3"],
        object_index: Int[Tensor, "point"],
        words: Sequence[str],
    ) -> Float[Tensor, "frame point 3"]:
        """Move every object by the mean motion of its word; the rest rests.

        Raises:
            EvaluationError: a word was never seen.
        """
        chosen = [torch.stack(self._known(word)).mean(0) for word in words]
        return _move(offsets, object_index, chosen)

    def draw(
        self,
        offsets: Float[Tensor, "point 3"],
        object_index: Int[Tensor, "point"],
        words: Sequence[str],
        generator: torch.Generator,
    ) -> Float[Tensor, "frame point 3"]:
        """Move every object as some example of its word moved: what a perfect sampler does.

        Raises:
            EvaluationError: a word was never seen.
        """
        chosen = []
        for word in words:
            known = self._known(word)
            number = torch.randint(len(known), (), generator=generator, device=generator.device)
            chosen.append(known[int(number)])
        return _move(offsets, object_index, chosen)

    def _known(self, word: str) -> list[Tensor]:
        if word not in self._motions:
            raise EvaluationError(
                f"No example has the word {word!r}; known are "
                f"{', '.join(sorted(self._motions)) or 'none'}."
            )
        return self._motions[word]


def fit_affine(
    motion: Float[Tensor, "frame point 3"], offsets: Float[Tensor, "point 3"]
) -> Float[Tensor, "frame 4 3"]:
    """Fit `motion = mean + (offset - centre) @ matrix` in each frame; rows: mean, matrix.

    Least squares, and the least matrix where a flat object leaves it open.
    """
    motion, offsets = motion.double(), offsets.double()
    mean = motion.mean(1, keepdim=True)
    inverse = torch.linalg.pinv(offsets - offsets.mean(0), rtol=_FLATNESS)
    return torch.cat([mean, inverse @ (motion - mean)], dim=1)


def _move(
    offsets: Float[Tensor, "point 3"],
    object_index: Int[Tensor, "point"],
    motions: Sequence[Float[Tensor, "frame 4 3"]],
) -> Float[Tensor, "frame point 3"]:
    if not motions:
        raise EvaluationError("The scene names no object; the oracle needs at least one.")
    result = offsets.new_zeros(len(motions[0]), *offsets.shape)
    for index, motion in enumerate(motions):
        mask = object_index == index
        if mask.any():
            centered = offsets[mask] - offsets[mask].mean(0)
            motion = motion.to(centered)
            result[:, mask] = motion[:, :1] + centered @ motion[:, 1:]
    return result


def _check_words(object_index: Int[Tensor, "point"], words: Sequence[str]) -> None:
    highest = int(object_index.max()) if len(object_index) else -1
    if highest >= len(words):
        raise EvaluationError(
            f"object_index goes up to {highest}, and there are {len(words)} words; expected a "
            "word for every object."
        )
