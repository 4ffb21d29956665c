"""Geometry of views: where their pixels look, which of them see the same, and what cannot be drawn."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from eyegraft.views import MOST_VIEWS, NUM_PLACES, WHOLE, View, Views, _count, token_places

STRATEGIES = ("resize", "e2p", "sliding_window", "cubemap", "anyres", "anyres_e2p")
DEGREES = st.floats(-360, 360)
VIEWS = st.builds(View, st.sampled_from(("perspective", "equirect")), DEGREES, st.floats(-40, 40), st.floats(5, 170), st.floats(5, 95))


def angle(one: Any, other: Any) -> Any:
    """Degrees between unit vectors."""
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(one - other, axis=-1) / 2, 0, 1)))


def middle(view: View) -> Any:
    return view.cells(1, 1)[0, 0]


@pytest.mark.parametrize(
    ("yaw", "pitch", "looks"),
    [(0, 0, (0, 0, 1)), (90, 0, (1, 0, 0)), (180, 0, (0, 0, -1)), (-90, 0, (-1, 0, 0)), (0, 90, (0, 1, 0)), (0, -90, (0, -1, 0))],
)
@pytest.mark.parametrize("kind", ["perspective", "equirect"])
def test_the_axes(kind: Any, yaw: float, pitch: float, looks: tuple[float, ...]) -> None:
    assert middle(View(kind, yaw, pitch, 90, 90)) == pytest.approx(looks, abs=1e-12)


def test_right_is_right_and_up_is_up() -> None:
    for view in (WHOLE, View("perspective", 0, 0, 90, 90)):
        assert view.directions(np.array(0.2), np.array(0.0))[0] > 0
        assert view.directions(np.array(0.0), np.array(-0.2))[1] > 0, "y grows downwards"


def test_the_edge_of_a_view_is_half_its_field_away() -> None:
    view = View("perspective", 30, 0, 90, 60)
    right, top = view.directions(np.array(1.0), np.array(0.0)), view.directions(np.array(0.0), np.array(-1.0))
    assert angle(right, middle(view)) == pytest.approx(45)
    assert angle(top, middle(view)) == pytest.approx(30)
    assert angle(right, middle(replace(view, yaw=75.0))) == pytest.approx(0, abs=1e-6), "45 degrees to the right of 30"


@settings(deadline=None)
@given(VIEWS, st.floats(-0.99, 0.99), st.floats(-0.99, 0.99))
def test_places_are_the_inverse_of_directions(view: View, x: float, y: float) -> None:
    assume(view.kind == "perspective" or abs(view.pitch) + view.height / 2 < 89.9)
    across, down = view.places(view.directions(np.array(x), np.array(y)))
    assert (float(across), float(down)) == pytest.approx((x, y), abs=1e-6)


@settings(deadline=None)
@given(VIEWS, st.floats(-180, 180))
def test_a_turn_changes_longitude_alone(view: View, turn: float) -> None:
    here, there = view.cells(3, 4), replace(view, yaw=view.yaw + turn).cells(3, 4)
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    turned = here @ np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
    assert np.abs(turned - there).max() < 1e-9


def test_what_lies_behind_the_camera_has_no_place() -> None:
    x, y = View("perspective", 0, 0, 90, 90).places(np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]]))
    assert np.isnan([x[0], y[0]]).all()
    assert (x[1], y[1]) == (0, 0)


@pytest.mark.parametrize(
    ("strategy", "count"), [("resize", 1), ("e2p", 8), ("sliding_window", 8), ("cubemap", 4), ("anyres", 9), ("anyres_e2p", 9)]
)
def test_the_usual_numbers_of_views(strategy: Any, count: int) -> None:
    views = Views(strategy=strategy)
    assert views.num_views == len(views.views) == count
    assert (views.views[0] == WHOLE) == (strategy in ("resize", "anyres", "anyres_e2p"))


def test_a_cubemap_looks_ahead_right_back_left() -> None:
    looks = [middle(view) for view in Views(strategy="cubemap").views]
    assert np.allclose(looks, [(0, 0, 1), (1, 0, 0), (0, 0, -1), (-1, 0, 0)])


@settings(deadline=None)
@given(st.floats(20, 170), st.floats(0, 0.9), DEGREES)
def test_tiles_are_a_closed_loop(fov: float, overlap: float, yaw: float) -> None:
    views = Views(strategy="e2p", fov_degrees=fov, overlap=overlap, yaw_degrees=yaw, pitch_range_degrees=(-10, 10))
    count = views.num_views
    assert count == math.ceil(360 / (fov * (1 - overlap)) - 1e-9)
    apart = [angle(middle(view), middle(views.views[(tile + 1) % count])) for tile, view in enumerate(views.views)]
    assert apart == pytest.approx([180 - abs(180 - 360 / count)] * count, abs=1e-5)
    assert 1 - 360 / count / fov >= overlap - 1e-9, "spacing them evenly makes the overlap larger, never smaller"


@pytest.mark.parametrize("strategy", ["e2p", "sliding_window", "anyres_e2p"])
def test_neighbours_see_the_same(strategy: Any) -> None:
    views = Views(strategy=strategy, pitch_range_degrees=(-60, 60))
    pairs = views.neighbours()
    assert len(pairs) == 2 * 8
    assert len({right for _, right in pairs}) == 2 * 8, "everyone has a left neighbour"
    for left, right in pairs:
        x, _ = views.views[right].places(views.views[left].directions(np.array(0.9), np.array(0.0)))
        assert -1 < x < 0, "what is right in one is left in the other"


def test_nothing_overlaps_nothing_is_a_neighbour() -> None:
    assert Views(strategy="resize").neighbours() == Views(strategy="cubemap").neighbours() == []
    assert Views(strategy="e2p", overlap=0).neighbours() == []


@settings(deadline=None)
@given(st.floats(40, 120), st.floats(-90, 0), st.floats(1, 90), st.floats(0, 0.6))
def test_rows_cover_the_elevations_asked_for(fov: float, low: float, high: float, overlap: float) -> None:
    views = Views(strategy="sliding_window", fov_degrees=fov, overlap=overlap, pitch_range_degrees=(low, high))
    pitches = sorted({view.pitch for view in views.views})
    assert pitches[0] - fov / 2 <= low + 1e-6
    assert pitches[-1] + fov / 2 >= high - 1e-6
    assert all(after - before <= fov + 1e-6 for before, after in pairwise(pitches)), "no gap"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"fov_degrees": 180}, "below 180, for a perspective view"),
        ({"fov_degrees": 0}, "greater than 0"),
        ({"overlap": 1}, "below 1"),
        ({"overlap": -0.1}, "at least 0"),
        ({"overlap": 0.999}, r"make 4,000 views of a panorama; expected at most 500: raise fov_degrees, lower overlap"),
        ({"fov_degrees": 1}, "make 128,880 views"),
        ({"fov_degrees": 1e-320, "overlap": 0.9999999999999999}, "make inf views"),
        ({"strategy": "cubemap", "fov_degrees": 60}, "expected 90, for the sides of a cube"),
        ({"pitch_range_degrees": (45, -45)}, "lower elevation first"),
        ({"pitch_range_degrees": (-91, 0)}, "within -90 and 90"),
        ({"size": 0}, "greater than 0"),
        ({"strategy": "cube"}, "cubemap"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Views.model_validate({"strategy": "e2p", **given})


def test_every_fault_of_views_is_said_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        Views(strategy="e2p", fov_degrees=200, overlap=1, pitch_range_degrees=(10, -10))
    assert [fault["loc"] for fault in caught.value.errors()] == [("fov_degrees",), ("overlap",), ("pitch_range_degrees",)]


@settings(deadline=None)
@given(st.floats(10, 170), st.floats(0, 0.9), st.floats(-90, 0), st.floats(1, 90))
def test_views_are_counted_before_they_are_made(fov: float, overlap: float, low: float, high: float) -> None:
    """So that a hundred thousand are refused at once, whatever the strategy's other settings."""
    given = {"strategy": "anyres_e2p", "fov_degrees": fov, "overlap": overlap, "pitch_range_degrees": (low, high)}
    try:
        views = Views.model_validate(given)
    except ValidationError as error:
        assert "views of a panorama" in str(error)
        resize = Views.model_validate({**given, "strategy": "resize"})
        assert resize.num_views == 1, "where there are no tiles, there are not too many"
        assert _count(resize.model_copy(update={"strategy": "anyres_e2p"})) > MOST_VIEWS
    else:
        assert views.num_views == _count(views) <= MOST_VIEWS


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_token_knows_where_it_looks(strategy: Any) -> None:
    views = Views(strategy=strategy)
    places = token_places(views, (2, 3), 1)
    assert places.shape == (views.num_views * 7, NUM_PLACES)
    assert np.allclose(np.linalg.norm(places[:, :3], axis=1), 1)
    for number, view in enumerate(views.views):
        own = places[number * 7 : number * 7 + 7]
        assert np.allclose(own[:, 3:6], middle(view), atol=1e-6)
        assert np.allclose(own[0, :3], middle(view), atol=1e-6), "the class token looks where its view does"
        assert np.allclose(own[1:, :3].reshape(2, 3, 3), view.cells(2, 3), atol=1e-6), "row by row"
        assert np.allclose(own[:, 6], math.log(math.radians(view.width)), atol=1e-6)
