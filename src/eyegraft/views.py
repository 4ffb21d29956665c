"""How a panorama is cut into views, and where on the sphere each of their pixels looks.

Axes: x to the right, y up, z ahead. A direction is a unit vector. Yaw 0 is the middle column of the equirectangular picture and grows to
the right; pitch 0 is the horizon and grows upwards. Places in a view are x from -1 (left) to 1 (right) and y from -1 (top) to 1 (bottom);
of n cells along a side, the i-th has its middle at (2i + 1) / n - 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from eyegraft.strict import Positive, Strict

if TYPE_CHECKING:  # the schema of recipes is read without paying for numpy
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """One picture of a part of the sphere; all angles in degrees.

    Attributes:
        kind: `perspective`, what a camera sees (gnomonic), or `equirect`, a window of the equirectangular picture.
        yaw, pitch: of its middle.
        width, height: of its field of view.
    """

    kind: Literal["perspective", "equirect"]
    yaw: float
    pitch: float
    width: float
    height: float

    def directions(self, x: Floats, y: Floats) -> Floats:
        """Places [...] -> unit vectors [..., 3]."""
        import numpy as np

        x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
        if self.kind == "equirect":
            longitude = np.radians(self.yaw + x * self.width / 2)
            latitude = np.radians(self.pitch - y * self.height / 2)
            level = np.cos(latitude)
            around: Floats = np.stack([level * np.sin(longitude), np.sin(latitude), level * np.cos(longitude)], axis=-1)
            return around
        ahead = np.stack([x * _half(self.width), -y * _half(self.height), np.ones_like(x)], axis=-1)
        turned: Floats = ahead @ self._rotation.T
        turned /= np.linalg.norm(turned, axis=-1, keepdims=True)
        return turned

    def places(self, directions: Floats) -> tuple[Floats, Floats]:
        """Unit vectors [..., 3] -> places x, y [...]: beyond -1 and 1 outside the view, NaN behind the camera."""
        import numpy as np

        if self.kind == "equirect":
            longitude = np.degrees(np.arctan2(directions[..., 0], directions[..., 2])) - self.yaw
            longitude = (longitude + 180) % 360 - 180
            latitude = np.degrees(np.arcsin(np.clip(directions[..., 1], -1, 1))) - self.pitch
            return longitude / (self.width / 2), -latitude / (self.height / 2)
        seen = directions @ self._rotation  # the inverse of a rotation is its transpose
        depth = np.where(seen[..., 2] > 1e-9, seen[..., 2], np.nan)
        return seen[..., 0] / depth / _half(self.width), -seen[..., 1] / depth / _half(self.height)

    def cells(self, rows: int, columns: int) -> Floats:
        """The directions of the middles of cells, [rows, columns, 3]."""
        return self.directions(_middles(columns)[None, :], _middles(rows)[:, None])

    @property
    def _rotation(self) -> Floats:
        """[3, 3], from the camera's axes to the world's: pitch first, then yaw."""
        import numpy as np

        yaw, pitch = math.radians(self.yaw), math.radians(self.pitch)
        up = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
        around = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
        both: Floats = around @ up
        return both


def _half(degrees: float) -> float:
    return math.tan(math.radians(degrees) / 2)


def _middles(count: int) -> Floats:
    import numpy as np

    return (2 * np.arange(count) + 1) / count - 1


WHOLE = View("equirect", 0.0, 0.0, 360.0, 180.0)
"""The equirectangular picture itself."""
MOST_VIEWS = 500
"""Of one panorama: small tiles that overlap much are soon more than can be drawn, let alone encoded to count their tokens."""
_CUBE = 90.0


class Views(Strict):
    """Which views of a panorama a model sees.

    | strategy         | views                                                                                                   |
    |------------------|---------------------------------------------------------------------------------------------------------|
    | `resize`         | the whole equirectangular picture, squashed to the encoder's size                                       |
    | `e2p`            | perspective tiles all around, a closed loop: the last one meets the first                               |
    | `sliding_window` | the same tiles as windows of the equirectangular picture, as it is                                      |
    | `cubemap`        | front, right, back, left: four perspective views of 90 degrees; what lies above and below is not seen   |
    | `anyres`         | the whole picture, then the tiles of `sliding_window`                                                   |
    | `anyres_e2p`     | the whole picture, then the tiles of `e2p`                                                              |

    A row of tiles has ceil(360 / (fov · (1 - overlap))) of them, evenly spaced; by default 8 with 45 degrees between them. A panorama has
    `MOST_VIEWS` views at most. `resize` has no tiles, so only `yaw_degrees`, `size` and `encode_positions` count there, and in `cubemap`.

    Attributes:
        strategy: see above.
        fov_degrees: width and height of a tile's field of view.
        overlap: share of a tile that the next one sees too; spacing tiles evenly may make it larger.
        yaw_degrees: where the first tile looks, and the middle of the whole picture.
        pitch_range_degrees: lowest and highest elevation that the rows of tiles cover; one row where a tile is as high as that.
        size: side of a view in pixels; None takes the encoder's.
        encode_positions: whether every token is told where it looks, and which way and how wide its view is.
    """

    strategy: Literal["resize", "e2p", "sliding_window", "cubemap", "anyres", "anyres_e2p"]
    fov_degrees: Annotated[float, Field(gt=0)] = 90.0
    overlap: float = 0.5
    yaw_degrees: float = 0.0
    pitch_range_degrees: tuple[float, float] = (-45.0, 45.0)
    size: Positive | None = None
    encode_positions: bool = True

    @field_validator("fov_degrees")
    @classmethod
    def _below_a_half_turn(cls, fov_degrees: float) -> float:
        if fov_degrees >= 180:
            raise ValueError("below 180, for a perspective view is narrower than that; 90 is usual, above 120 its edges smear")
        return fov_degrees

    @field_validator("overlap")
    @classmethod
    def _goes_all_around(cls, overlap: float) -> float:
        if not 0 <= overlap < 1:
            raise ValueError(
                "the share of a tile that the next one sees too, at least 0 and below 1 (at 1 no number of tiles would go all around); "
                "0.5 is usual"
            )
        return overlap

    @field_validator("pitch_range_degrees")
    @classmethod
    def _from_low_to_high(cls, pitch_range_degrees: tuple[float, float]) -> tuple[float, float]:
        low, high = pitch_range_degrees
        if not -90 <= low < high <= 90:
            raise ValueError("the lower elevation first, both within -90 and 90")
        return pitch_range_degrees

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Views:
        if self.strategy == "cubemap" and self.fov_degrees != _CUBE:
            raise ValueError(
                f"fov_degrees={self.fov_degrees:g} with strategy=cubemap; expected {_CUBE:g}, for the sides of a cube are as wide as that; "
                "for others set views=e2p with views.overlap=0"
            )
        if self._is_cut and (count := _count(self)) > MOST_VIEWS:
            number = f"{count:,.0f}" if count < 1e9 else f"{count:.0e}"
            raise ValueError(
                f"fov_degrees={self.fov_degrees:g} and overlap={self.overlap:g} make {number} views of a panorama; expected at most "
                f"{MOST_VIEWS}: raise fov_degrees, lower overlap, or narrow pitch_range_degrees"
            )
        return self

    @property
    def _is_cut(self) -> bool:
        """Whether there are tiles whose number the settings decide."""
        return self.strategy not in ("resize", "cubemap")

    @property
    def views(self) -> tuple[View, ...]:
        """The whole picture first, where there is one, then tiles row by row from below, each row to the right."""
        return _views(self)

    @property
    def num_views(self) -> int:
        return len(self.views)

    @property
    def has_whole(self) -> bool:
        """Whether view 0 is the whole picture."""
        return self.strategy in ("resize", "anyres", "anyres_e2p")

    def neighbours(self) -> list[tuple[int, int]]:
        """(i, j): tile j is the next to the right of tile i and sees a part of what i sees; around the whole loop."""
        first, count = int(self.has_whole), _tiles_in_row(self)
        if not self._is_cut or count < 2 or 360 / count >= self.fov_degrees:
            return []
        rows = (self.num_views - first) // count
        return [(first + row * count + tile, first + row * count + (tile + 1) % count) for row in range(rows) for tile in range(count)]


def _tiles_in_row(views: Views) -> int:
    return math.ceil(360 / (views.fov_degrees * (1 - views.overlap)) - 1e-9)


def _count(views: Views) -> float:
    """How many views there would be, not one of them made; infinite where floats end."""
    between = views.fov_degrees * (1 - views.overlap)
    if between < 1e-6:
        return math.inf
    return int(views.has_whole) + float(_tiles_in_row(views)) * _rows(views)


@lru_cache(maxsize=64)
def _views(views: Views) -> tuple[View, ...]:
    yaw, fov = views.yaw_degrees, views.fov_degrees
    whole = (View("equirect", yaw, 0.0, 360.0, 180.0),) if views.has_whole else ()
    if views.strategy == "resize":
        return whole
    if views.strategy == "cubemap":
        return tuple(View("perspective", yaw + quarter * _CUBE, 0.0, _CUBE, _CUBE) for quarter in range(4))
    kind: Literal["perspective", "equirect"] = "perspective" if views.strategy in ("e2p", "anyres_e2p") else "equirect"
    count = _tiles_in_row(views)
    tiles = (View(kind, yaw + tile * 360 / count, pitch, fov, fov) for pitch in _pitches(views) for tile in range(count))
    return whole + tuple(tiles)


def _rows(views: Views) -> int:
    """Rows of tiles, one above the other."""
    low, high = views.pitch_range_degrees
    spare = high - low - views.fov_degrees
    return 1 if spare <= 1e-9 else 1 + math.ceil(spare / (views.fov_degrees * (1 - views.overlap)) - 1e-9)


def _pitches(views: Views) -> list[float]:
    """The middles of the rows of tiles."""
    (low, high), fov, rows = views.pitch_range_degrees, views.fov_degrees, _rows(views)
    if rows == 1:
        return [(low + high) / 2]
    return [low + fov / 2 + (high - low - fov) * row / (rows - 1) for row in range(rows)]


NUM_PLACES = 7
"""Numbers that say where a token looks (see `token_places`)."""


@lru_cache(maxsize=64)
def token_places(views: Views, grid: tuple[int, int] | None, num_prefix: int) -> NDArray[np.float32]:
    """Where every token looks, [V·(P + h·w), 7], view by view: its direction, its view's middle, and the logarithm of the view's width in
    radians. Tokens that lie on no grid look where their view does.

    Args:
        grid: (h, w) of one view, or None.
        num_prefix: P, tokens of each view before its grid; all of them where there is no grid.
    """
    import numpy as np

    rows = []
    for view in views.views:
        middle = view.cells(1, 1).reshape(1, 3)
        cells = view.cells(*grid).reshape(-1, 3) if grid is not None else middle[:0]
        looks = np.concatenate([np.repeat(middle, num_prefix, axis=0), cells])
        width = math.log(math.radians(view.width))
        rows.append(np.concatenate([looks, np.repeat(middle, len(looks), axis=0), np.full((len(looks), 1), width)], axis=1))
    return np.concatenate(rows).astype(np.float32)
