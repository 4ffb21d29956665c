"""Full-size GK-2A scenes on both grids: what decoding costs, whole and cropped, and how little cutting out all patches adds to it.

    python benchmarks/gk2a_scenes.py
    python benchmarks/gk2a_scenes.py --small

Sixteen simulated files for each grid, of the published size and form: `ko` 900 x 900 at 2 km, filled everywhere; `fd` 5,500 x 5,500 at
2 km and, of the visible bands, 11,000 and 22,000 x 22,000, IR105 and VI006 filled everywhere and the others around Korea. `--small` leaves
VI006 around Korea too (to decode it whole takes 6 GB of memory and most of the two minutes). What fills a disk is simulated weather around
Korea, repeated: its physics are no matter here, its bytes are. Fails when cutting takes more than 5 % of decoding, as a median.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from eyegraft.prepare import gk2a_simulated
from eyegraft.prepare.gk2a import gather, simulate
from eyegraft.prepare.gk2a.bands import BANDS, Band
from eyegraft.prepare.gk2a.grid import grid_of, nearest
from eyegraft.prepare.gk2a.read import SceneFiles, Window, find_scenes, parse_name, read_band
from eyegraft.prepare.gk2a.write import write_band

TIME = datetime(2024, 4, 15, 3, 0, tzinfo=UTC)
BOX = (114.0, 137.5, 28.5, 46.5)
ALLOWED = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="scenes decoded cropped")
    parser.add_argument("--small", action="store_true", help="without the 22,000 x 22,000 pixels of VI006")
    given = parser.parse_args()
    stations = pd.read_csv(Path(gk2a_simulated.__file__).with_name("stations.csv"), dtype={"station": str})
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        for area in ("ko", "fd"):
            place = Path(folder) / area
            everywhere = {"IR105", *([] if given.small else ["VI006"])} if area == "fd" else set(BANDS)
            seconds = timed(lambda place=place, area=area, names=everywhere: write(place, area, names))
            (scene,) = find_scenes(place)
            size = sum(path.stat().st_size for path in scene.files.values())
            print(f"\n{area}: written in {seconds:.1f} s, {size / 1e6:,.0f} MB")
            for name in ("IR105", "VI006") if area == "ko" else sorted(everywhere):
                whole_and_cropped(scene.files[name], stations)
            shares.append(cutting(scene, place, stations, given.repeat))
    print(f"\ncutting takes at most {max(shares):.1%} of decoding; allowed {ALLOWED:.0%}")
    return int(max(shares) > ALLOWED)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def write(folder: Path, area: str, everywhere: set[str]) -> None:
    """A file of each band; those of the disk that are filled everywhere repeat what lies around Korea."""
    if area == "ko":
        simulate.write_scene(folder, TIME, 0, box=None)
        return
    for path in simulate.write_scene(folder, TIME, 0, area="fd", box=BOX, native=True):
        band = parse_name(path).band
        if band.name in everywhere:
            repeated(path, band)


def repeated(path: Path, band: Band) -> None:
    import h5netcdf

    name = parse_name(path)
    grid = grid_of("fd", name.resolution_m)
    rows, columns = window_of("fd", BOX, 2000 // name.resolution_m)
    with h5netcdf.File(path, "r") as stored:
        piece = stored.variables["image_pixel_values"][rows, columns] & np.uint16(2**band.bits - 1)
    times = [-(-size // part) for size, part in zip(grid.shape, piece.shape, strict=True)]
    counts = np.tile(piece, times)[: grid.shape[0], : grid.shape[1]]
    write_band(path.parent, band, "fd", name.resolution_m, TIME, counts, (slice(0, grid.shape[0]), slice(0, grid.shape[1])))


def window_of(area: str, box: tuple[float, float, float, float], times: int) -> Window:
    rows, columns = grid_of(area).window_around(box)
    return slice(rows.start * times, rows.stop * times), slice(columns.start * times, columns.stop * times)


def pixels(area: str, stations: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    column, row = grid_of(area).to_pixel(stations["lon"].to_numpy(), stations["lat"].to_numpy())
    return nearest(column), nearest(row)


def crop(area: str, stations: pd.DataFrame, half: int = 4) -> Window:
    """The window that holds every patch."""
    x, y = pixels(area, stations)
    return slice(int(y.min()) - half, int(y.max()) + half + 1), slice(int(x.min()) - half, int(x.max()) + half + 1)


def whole_and_cropped(path: Path, stations: pd.DataFrame) -> None:
    name = parse_name(path)
    window = crop(name.area, stations)
    cropped = statistics.median(timed(lambda: read_band(path, window)) for _ in range(3))
    whole = timed(lambda: read_band(path))
    side = grid_of(name.area, name.resolution_m).shape[0]
    print(f"  {name.band.name}, {side:,} x {side:,}: whole {whole:.2f} s, cropped {cropped:.3f} s, {whole / cropped:.0f} times less")


def cutting(scene: SceneFiles, root: Path, stations: pd.DataFrame, repeat: int) -> float:
    """Share of cutting all patches of all stations in decoding the sixteen bands; the median over repetitions."""
    cut = gather.Cut(root, root, scene.area, crop(scene.area, stations), 9, "drop", True, None)
    rows = np.zeros(len(stations), gather.ROW)
    rows["stn"], rows["lat"], rows["lon"] = stations["station"].astype(int), stations["lat"], stations["lon"]
    rows["x"], rows["y"] = pixels(scene.area, stations)
    rows["ta"] = 280.0
    files = {name: [path.relative_to(root).as_posix()] for name, path in scene.files.items()}
    described = {"time": TIME.strftime("%Y-%m-%d %H:%M:%S"), "files": files, "rows": {"train": gather.packed(rows)}}
    spent: dict[str, list[float]] = {"decode": [], "sun and ground": [], "cut": []}
    for _ in range(repeat + 1):
        at = [time.perf_counter()]
        read = gather.read(cut, described)
        at.append(time.perf_counter())
        layers = gather.stacked(cut, read)
        at.append(time.perf_counter())
        made = gather._Rows(cut.side, [described], "train")
        made.add(cut, layers, rows, described["time"])
        at.append(time.perf_counter())
        for name, start, stop in zip(spent, at, at[1:], strict=False):
            spent[name].append(stop - start)
    middle = {name: statistics.median(values[1:]) for name, values in spent.items()}  # the first warms up
    kept = len(made.columns()["y"])
    told = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in middle.items())
    print(f"  sixteen bands cropped, {kept} of {len(rows)} patches: {told}")
    return statistics.median(b / a for a, b in zip(spent["decode"][1:], spent["cut"][1:], strict=True))


if __name__ == "__main__":
    sys.exit(main())
