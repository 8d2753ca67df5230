"""A procedural scene from a seed: scenery, actors that do what a caption says, cameras.

Everything here is drawn on the CPU in float64, so that a seed means one scene on every machine.
"""

import math
from dataclasses import dataclass, replace

import torch

from more4d_backend.camera_paths import PathSettings
from more4d_backend.geometry import focal_from_fov, invert_rigid
from more4d_backend.synthetic import SyntheticWorld
from more4d_backend.synthetic.actors import Dice, SyntheticObject
from more4d_backend.synthetic.layout import (
    CameraMotion,
    landscape,
    marble_waves,
    room,
    sky_texture,
)
from more4d_backend.synthetic.motions import Vector
from more4d_backend.synthetic.surfaces import Pattern, Texture

from ..data.samples import SampleObject
from ..run.settings import SettingsError
from .actors import COLORS, KINDS, Place, actor_texture
from .settings import ProceduralSettings
from .words import STILL, Amounts, Word

_SKY_RADIUS_M = 40.0
_CAMERA_HEIGHT_M = 1.55
_FAR_WALL_M, _SIDE_WALL_M, _CEILING_M = 8.0, 3.5, 2.9  # a little inside of the smallest room
_TRAVELS = {"left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, -1, 0), "forward": (0, 0, 1)}
"""Ways of the source camera, in its own axes."""
_JOINTED_RADIUS = 0.1
"""Bodies of parts are made from this share of the shorter side on: their parts are thinner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProceduralScene:
    """A scene before anything is rendered."""

    world: SyntheticWorld
    """Exact geometry; its first objects are scenery."""

    actors: tuple[SampleObject, ...]
    """In the order of the caption."""

    actor_of: tuple[int, ...]
    """Number of the actor that each of the world's objects is part of; -1 for scenery."""

    caption: str
    """Names every actor, what it does, and how the camera moves."""

    novel_path: str | None
    """Camera path of the second video."""

    path_settings: PathSettings
    """Of `novel_path`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """Where things can stand."""

    camera: CameraMotion
    distance_m: float
    indoors: bool
    focal: float
    """Focal length as a share of the longer side."""
    aspect_xy: tuple[float, float]
    """Width and height of the picture as shares of the longer side."""
    to_stage: list[list[float]]
    """Rows of the camera's pose at time 0. Numbers, because a tensor per draw would be slow."""

    def point(self, x: float, y: float, depth_m: float) -> Vector:
        """Stage coordinates of a place in the picture, (0, 0) to (1, 1), at a depth."""
        x, y = (
            (v - 0.5) * side / self.focal for v, side in zip((x, y), self.aspect_xy, strict=True)
        )
        a, b, c = (depth_m * (r[0] * x + r[1] * y + r[2]) + r[3] for r in self.to_stage)
        return (a, b, c)

    def ground_row(self, depth_m: float) -> float:
        """Row of the picture, 0 to 1, in which the ground has this depth."""
        high, low = self.point(0.5, 0.0, depth_m)[1], self.point(0.5, 1.0, depth_m)[1]
        return (0.0 - high) / (low - high)

    def has_room_for(self, point: Vector, size_m: float) -> bool:
        """Whether nothing of the scenery is in the way."""
        x, y, z = point
        if y + size_m > 0.01:
            return False
        if not self.indoors:
            return z < 9.5
        return (
            abs(x) + size_m < _SIDE_WALL_M and z + size_m < _FAR_WALL_M and size_m - y < _CEILING_M
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spot:
    """A disc in the picture, at a depth."""

    x: float
    y: float
    depth_m: float
    radius: float
    """Share of the shorter side."""
    point: Vector
    size_m: float


class _NoRoom(Exception):
    """This draw leads nowhere; draw again."""


def draw_scene(seed: int, settings: ProceduralSettings) -> ProceduralScene:
    """Draw the scene of a seed.

    Raises:
        SettingsError: 200 draws in a row did not fit the settings.
    """
    dice = Dice(seed)
    for _ in range(200):
        try:
            scene = _draw(dice, settings)
        except _NoRoom:
            continue
        if _fits(scene, settings):
            return scene
    raise SettingsError(
        f"Seed {seed}: no scene of 200 had room for {settings.num_actors} actors of radius "
        f"{settings.radius} with at most {settings.max_moving_share:.0%} of the pixels moving. "
        "Ask for fewer or smaller ones."
    )


def _draw(dice: Dice, settings: ProceduralSettings) -> ProceduralScene:
    setting = _one_of(dice, settings.settings)
    stage = _stage(dice, settings, indoors=setting == "room")
    objects = _scenery(dice, setting)
    actor_of = [-1] * len(objects)
    count = settings.num_actors[0] + dice.below(settings.num_actors[1] - settings.num_actors[0] + 1)
    lanes, hues = dice.order(count), dice.order(len(COLORS))
    to_world = stage.camera.stage_to_world()[:3, :3]
    actors: list[SampleObject] = []
    spots: list[_Spot] = []
    for number in range(count):
        taken = {actor.motion for actor in actors}
        kind, word, radius = _cast(dice, settings, taken, must_move=number < 2)
        depth = stage.distance_m * (0.7 + 0.75 * (lanes[number] + dice.between(0.3, 0.7)) / count)
        spot = _spot(dice, stage, word, radius, depth, spots)
        color_name, pattern = list(COLORS)[hues[number]], _one_of(dice, settings.patterns)
        amounts = Amounts(
            strength=1 + settings.speed_spread * dice.between(-1, 1),
            duration_s=settings.duration_s,
            extent_m=(
                depth * stage.aspect_xy[0] / stage.focal,
                depth * stage.aspect_xy[1] / stage.focal,
                depth,
            ),
        )
        x, y, z = spot.point
        place = Place(feet=(x, y + spot.size_m, z), size_m=spot.size_m, parent_index=len(objects))
        texture = actor_texture(dice, color_name, pattern, 2 * spot.size_m)
        parts = KINDS[kind].build(dice, word, amounts, place, texture)
        objects += parts
        actor_of += [number] * len(parts)
        spots.append(spot)
        direction = (to_world @ to_world.new_tensor(word.direction)).tolist()
        actors.append(
            SampleObject(
                name=f"{color_name} {pattern} {KINDS[kind].noun}",
                motion=word.phrase,
                family=word.family,
                direction=(direction[0], direction[1], direction[2]),
            )
        )
    camera, camera_phrase = _travel(dice, settings, stage)
    return ProceduralScene(
        world=_world(dice, objects, camera, settings),
        actors=tuple(actors),
        actor_of=tuple(actor_of),
        caption=_caption(dice, setting, actors, camera_phrase),
        novel_path=_one_of(dice, settings.novel_paths) if settings.novel_paths else None,
        path_settings=PathSettings(
            amplitude=dice.between(*settings.novel_amplitude),
            pivot_distance=stage.distance_m,
            ease="in-out" if dice.below(2) else "linear",
        ),
    )


def _scenery(dice: Dice, setting: str) -> list[SyntheticObject]:
    """A room or a landscape; its textures are any, because holes show mostly scenery."""
    objects = room(dice, dice.between(0, 1)) if setting == "room" else landscape(dice)
    chosen: dict[str, Pattern] = {}
    for thing in objects:  # walls of one room look alike
        chosen.setdefault(thing.name, Pattern(dice.below(len(Pattern))))
    finer, sharpness = dice.between(1.0, 2.4), dice.between(1.2, 3.5)

    def texture(old: Texture, pattern: Pattern) -> Texture:
        return replace(old, pattern=pattern, frequency=old.frequency * finer, sharpness=sharpness)

    return [replace(o, texture=texture(o.texture, chosen[o.name])) for o in objects]


def _one_of(dice: Dice, choices: tuple[str, ...]) -> str:
    return choices[dice.below(len(choices))]


def _stage(dice: Dice, settings: ProceduralSettings, *, indoors: bool) -> _Stage:
    fov_rad = math.radians(dice.between(*settings.fov_deg))
    focal = focal_from_fov(fov_rad, 1.0)
    # A narrow view stands further back, as a photographer would, as far as the room allows.
    distance = min(max(4.2 * focal**0.6, 3.2), 6.0 if indoors else 8.0)
    height = _CAMERA_HEIGHT_M * dice.between(0.8, 1.15)
    longer = max(settings.size.height, settings.size.width)
    camera = CameraMotion(
        position=(0.0, -height, 4.2 - distance),
        target=(0.0, -height * dice.between(0.35, 0.55), 4.2),
        fov_rad=fov_rad,
    )
    return _Stage(
        camera=camera,
        distance_m=distance,
        indoors=indoors,
        focal=focal,
        aspect_xy=(settings.size.width / longer, settings.size.height / longer),
        to_stage=invert_rigid(camera.stage_to_world())[:3].tolist(),
    )


def _cast(
    dice: Dice, settings: ProceduralSettings, taken: set[str], *, must_move: bool
) -> tuple[str, Word, float]:
    """Choose a kind, a word that nobody else has (but for staying still), and a radius."""
    low, high = settings.radius
    radius = low * (high / low) ** dice.between(0, 1)
    if not must_move and dice.between(0, 1) < settings.still_share:
        words = [STILL]
        kinds = list(settings.kinds)
    else:
        family = _one_of(dice, settings.families)
        kinds = [k for k in settings.kinds if any(w.family == family for w in KINDS[k].words)]
        words = [w for k in kinds for w in KINDS[k].words if w.family == family]
    kinds = [k for k in kinds if radius >= _JOINTED_RADIUS or not KINDS[k].jointed]
    if not kinds:
        raise _NoRoom
    # Half of those that could be bodies of parts are solids, or the screen would be full of them.
    solids = [k for k in kinds if not KINDS[k].jointed]
    chosen = solids if solids and dice.below(2) else kinds
    kind = chosen[dice.below(len(chosen))]
    words = [w for w in words if w is STILL or (w in KINDS[kind].words and w.phrase not in taken)]
    if not words:
        raise _NoRoom
    return kind, words[dice.below(len(words))], radius


def _spot(
    dice: Dice, stage: _Stage, word: Word, radius: float, depth_m: float, others: list[_Spot]
) -> _Spot:
    """Find a free place in the picture, from which `word` leads to another place in it."""
    shorter = min(stage.aspect_xy)
    size_m = radius * shorter * depth_m / stage.focal
    margin = [1.15 * radius * shorter / side for side in stage.aspect_xy]
    grounded = dice.below(2) == 0 and word.travel[1] <= 0
    for _ in range(30):
        x, y = (dice.between(m, 1 - m) for m in margin)
        if grounded:
            y = stage.ground_row(depth_m) - radius * shorter / stage.aspect_xy[1]
        end = [x + word.travel[0] * 1.4, y + word.travel[1] * 1.4]
        if not all(m <= v <= 1 - m for v, m in zip((x, y, *end), margin * 2, strict=True)):
            continue
        point = stage.point(x, y, depth_m)
        if grounded:
            point = (point[0], -size_m, point[2])
        apart = all(
            math.hypot(
                (x - o.x) * stage.aspect_xy[0] / shorter, (y - o.y) * stage.aspect_xy[1] / shorter
            )
            > 1.05 * (radius + o.radius)
            for o in others
        )
        if apart and stage.has_room_for(point, size_m * 0.999):
            return _Spot(x=x, y=y, depth_m=depth_m, radius=radius, point=point, size_m=size_m)
    raise _NoRoom


def _travel(
    dice: Dice, settings: ProceduralSettings, stage: _Stage
) -> tuple[CameraMotion, str | None]:
    """Choose how the source camera travels, and its words."""
    moves = dice.between(0, 1) < settings.moving_camera_share
    name = _one_of(dice, tuple(_TRAVELS))
    share = 0.16 * (1 + settings.speed_spread * dice.between(-1, 1))
    if not moves:
        return stage.camera, None
    speed = share * stage.distance_m / settings.duration_s
    x, y, z = _TRAVELS[name]
    still = stage.camera
    return (
        CameraMotion(
            position=still.position,
            target=still.target,
            velocity=(x * speed, y * speed, z * speed),
            fov_rad=still.fov_rad,
        ),
        _camera_phrase(name),
    )


def _camera_phrase(name: str) -> str:
    return f"the camera moves {name}"


def _world(
    dice: Dice, objects: list[SyntheticObject], camera: CameraMotion, settings: ProceduralSettings
) -> SyntheticWorld:
    light = torch.tensor([dice.sign() * dice.between(0.4, 0.9), -1.0, -dice.between(0.3, 0.8)])
    x, y, z = torch.nn.functional.normalize(light.double(), dim=0).tolist()
    return SyntheticWorld(
        objects=tuple(objects),
        sky=sky_texture(dice),
        sky_radius_m=_SKY_RADIUS_M,
        light=(x, y, z),
        waves=marble_waves(dice),
        camera_motion=camera,
        fps=settings.fps,
    )


def draw_caption(
    seed: int, settings: ProceduralSettings, *, fewest: int | None = None
) -> tuple[str, tuple[SampleObject, ...]]:
    """Draw a caption as scenes have them, without a scene, and who does what in it.

    All combinations are about equally frequent, also those that seldom fit into a picture.
    `fewest` is the least number of actors, if not that of the settings.
    """
    dice = Dice(seed)
    low, high = settings.num_actors
    low = low if fewest is None else fewest
    hues, actors = dice.order(len(COLORS)), []
    for number in range(low + dice.below(high - low + 1)):
        kind = _one_of(dice, settings.kinds)
        taken = {actor.motion for actor in actors}
        words = [w for w in KINDS[kind].words if w.phrase not in taken]
        still = dice.between(0, 1) < settings.still_share or not words
        word = STILL if still else words[dice.below(len(words))]
        name = f"{list(COLORS)[hues[number]]} {_one_of(dice, settings.patterns)} {KINDS[kind].noun}"
        actors.append(
            SampleObject(
                name=name, motion=word.phrase, family=word.family, direction=word.direction
            )
        )
    travels = dice.between(0, 1) < settings.moving_camera_share
    camera_phrase = _camera_phrase(_one_of(dice, tuple(_TRAVELS))) if travels else None
    caption = _caption(dice, _one_of(dice, settings.settings), actors, camera_phrase)
    return caption, tuple(actors)


def _caption(
    dice: Dice, setting: str, actors: list[SampleObject], camera_phrase: str | None
) -> str:
    """One of three ways to say it all."""
    clauses = [f"{_article(actor.name)} {actor.name} {actor.motion}" for actor in actors]
    style, where = dice.below(3), f"in a {setting}"
    ending = "" if camera_phrase is None else f", {camera_phrase}"
    if style == 0:
        sentences = [clause[0].upper() + clause[1:] + "." for clause in clauses]
        if camera_phrase is not None:
            sentences.append(camera_phrase[0].upper() + camera_phrase[1:] + ".")
        return " ".join(sentences)
    if style == 1:
        return f"{where[0].upper()}{where[1:]}, {'; '.join(clauses)}{ending}."
    joined = ", while ".join(filter(None, ["; ".join(clauses[:-1]), clauses[-1]]))
    return f"{joined[0].upper()}{joined[1:]} {where}{ending}."


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def _fits(scene: ProceduralScene, settings: ProceduralSettings) -> bool:
    """Look at frame 0 in small: enough of each actor is seen, and not too much moves."""
    size = settings.size
    scale = 40 / max(size.height, size.width)
    height, width = round(size.height * scale), round(size.width * scale)
    cameras = scene.world.cameras(1, height, width)
    seen = scene.world.objects_seen(cameras).flatten()
    actor = torch.tensor([*scene.actor_of, -1])[seen]  # the sky is object -1
    share = torch.bincount(actor + 1, minlength=len(scene.actors) + 1)[1:] / actor.numel()
    moving = torch.tensor([a.family != "still" for a in scene.actors])
    smallest = 1.2 * settings.radius[0] ** 2 * min(height, width) ** 2 / (height * width)
    enough = bool((share >= max(smallest, 2 / actor.numel())).all())
    return enough and float(share[moving].sum()) <= 0.93 * settings.max_moving_share
