"""The text encoder learns to read before 4D-STraG learns from what it says.

Every byte of "a red striped ball moves left" has to tell of the whole clause, so that a transformer
that looks for something red finds at the same place where it goes. From 4D-STraG's loss alone this
comes late: after thousands of updates a linear reader found the colour at the noun little more
often than chance does.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from more4d_backend.tiny.text_encoder import ByteTextModel
from more4d_backend.tiny.writing import write_embedded

from ..data.sources import VALIDATION_SEED
from ..procedural.actors import COLORS, KINDS, PATTERNS
from ..procedural.dataset import PROCEDURAL_RECIPES
from ..procedural.scenes import draw_caption
from ..procedural.settings import ProceduralSettings
from ..procedural.words import STILL
from ..run.averaging import ParameterAverage
from ..run.settings import SettingsError
from .loop import SEEDS_APART, Losses, TinyTraining, train_tiny

_log = logging.getLogger(__name__)

_MOTIONS = sorted({word.phrase for kind in KINDS.values() for word in (*kind.words, STILL)})
PROPERTIES: Mapping[str, list[str]] = {
    "color": list(COLORS),
    "pattern": list(PATTERNS),
    "noun": list(KINDS),
    "motion": _MOTIONS,
}
"""What is read at every byte of a clause, in the clause's order, and which answers there are."""

_NOTHING = -100
"""Label of bytes outside of clauses, and of what a clause leaves out; `cross_entropy` passes over
them."""
_NUM_HELD_OUT = 512


@dataclass(frozen=True, slots=True)
class Captions:
    """Texts, and what each byte's clause says."""

    texts: tuple[str, ...]

    labels: dict[str, Tensor]
    """Property -> (text, byte) numbers of its answers; `_NOTHING` where there is none."""

    @classmethod
    def drawn(cls, first_seed: int, count: int, *, shortened: bool = True) -> "Captions":
        """Draw captions as the recipe `tiny` has them, with one actor, too.

        `shortened`: with some words left out, as people write who see the picture.
        """
        settings = PROCEDURAL_RECIPES["tiny"]()
        said = [_Said.drawn(seed, settings) for seed in range(first_seed, first_seed + count)]
        if shortened:
            said = [each.shortened(number) for number, each in enumerate(said)]
        longest = max(len(each.text) for each in said)
        labels = {name: torch.full((count, longest), _NOTHING) for name in PROPERTIES}
        for number, each in enumerate(said):
            for clause in each.clauses:
                start = each.text.index(" ".join(clause.values()))
                end = start + len(" ".join(clause.values()))
                for name, answer in clause.items():
                    labels[name][number, start:end] = PROPERTIES[name].index(answer)
        return cls(texts=tuple(each.text for each in said), labels=labels)

    def chosen(self, numbers: Tensor) -> "Captions":
        """Return some of them."""
        texts = tuple(self.texts[number] for number in numbers.tolist())
        longest = max(map(len, texts))
        labels = {name: rows[numbers, :longest] for name, rows in self.labels.items()}
        return Captions(texts=texts, labels=labels)


@dataclass(frozen=True, slots=True)
class _Said:
    """A text, and the properties that each of its clauses names, by name and in their order."""

    text: str
    clauses: tuple[dict[str, str], ...]

    @classmethod
    def drawn(cls, seed: int, settings: ProceduralSettings) -> "_Said":
        text, actors = draw_caption(seed, settings, fewest=1)
        words = [(*actor.name.split(), actor.motion) for actor in actors]
        clauses = (dict(zip(PROPERTIES, each, strict=True)) for each in words)
        return cls(text.lower(), tuple(clauses))

    def shortened(self, seed: int) -> "_Said":
        """Leave out the colour or the pattern of some, and change their articles."""
        dice, text, clauses = Random(seed), self.text, []
        for clause in self.clauses:
            left_out = dice.choice([(), (), ("pattern",), ("color",)])
            shorter = {name: word for name, word in clause.items() if name not in left_out}
            article = dice.choice(["a ", "the ", ""])
            full = " ".join(clause.values())
            # Colours are given once in a caption, so that no two actors have one name.
            text = re.sub(rf"\ban? {full}", article + " ".join(shorter.values()), text)
            clauses.append(shorter)
        texts = [" ".join(clause.values()) for clause in clauses]
        # Where two clauses became alike, nobody could tell them apart.
        alike = any(text.count(each) != 1 for each in texts)
        return self if alike else _Said(text, tuple(clauses))


class ClauseReader(nn.Module):
    """The text encoder, and a linear reader of each property before its last layer.

    That layer only widens, which costs more than all the rest, and keeps its random values here.
    """

    def __init__(self) -> None:
        """Make networks with random values."""
        super().__init__()
        self.text = ByteTextModel()
        width = self.text.output.in_features
        self.readers = nn.ModuleDict(
            {name: nn.Linear(width, len(answers)) for name, answers in PROPERTIES.items()}
        )

    def forward(self, texts: Sequence[str], num_bytes: int) -> dict[str, Tensor]:
        """Return (text, byte, answer) scores of each property for the first bytes."""
        hidden = self.text.read(texts)[0][:, :num_bytes]
        return {name: reader(hidden) for name, reader in self.readers.items()}

    def losses(self, captions: Captions) -> Losses:
        """Cross-entropy of each property over the bytes of clauses; `loss` is their sum."""
        longest = captions.labels["color"].shape[1]
        parts = {
            name: F.cross_entropy(
                scores.flatten(0, 1).float(), captions.labels[name].flatten().to(scores.device)
            )
            for name, scores in self(captions.texts, longest).items()
        }
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    @torch.no_grad()
    def right(self, captions: Captions) -> dict[str, float]:
        """Return the share of clauses' bytes at which each property is read right."""
        found = {}
        for name, scores in self(captions.texts, captions.labels["color"].shape[1]).items():
            labels = captions.labels[name].to(scores.device)
            found[name] = float((scores.argmax(-1) == labels)[labels != _NOTHING].float().mean())
        return found


def train_text(training: TinyTraining) -> None:
    """Train the text encoder by itself; 4D-STraG's training takes it from there.

    Raises:
        SettingsError: `start` is given.
    """
    if training.start:
        raise SettingsError("--start is given; the text encoder is trained from nothing alone.")
    torch.manual_seed(training.seed)
    model = ClauseReader().to(training.device)
    generator = torch.Generator().manual_seed(training.seed)
    pool = Captions.drawn(training.seed * SEEDS_APART, training.pool_size)
    _log.info("%d captions to learn from", training.pool_size)

    def losses(_progress: float, _average: ParameterAverage) -> Losses:
        chosen = torch.randint(training.pool_size, (training.batch_size,), generator=generator)
        return model.losses(pool.chosen(chosen))

    average = train_tiny(model, losses, training, generator)
    with average.in_use():
        write_embedded("text_encoder", model.text, folder=training.output, recipe=training.recipe)
        for kind, shortened in (("other", False), ("shortened", True)):
            held_out = Captions.drawn(VALIDATION_SEED, _NUM_HELD_OUT, shortened=shortened)
            with training.autocast():
                right = model.eval().right(held_out)
            said = ", ".join(f"{name} {100 * share:.1f} %" for name, share in right.items())
            _log.info("On %s captions, read right at the bytes of clauses: %s", kind, said)
    training.unfinished.unlink()
