"""Make `ground_east_asia.npz` again: land and sea, land cover and elevation around Korea, cut from public global grids.

    python rebuild_ground.py --etopo5 etopo5.cdf --igbp MCD12C1.A2019001.006.2020220162300.tif --land globe_combined_mask_compressed.npz

README.md says where the three come from. Needs SciPy; the land mask takes about 1 GB of memory while it is cut.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WEST, EAST, SOUTH, NORTH = 112.0, 140.0, 27.0, 47.0


def _land(path: Path) -> NDArray[np.bool_]:
    """True on land, 1/120 degree, row 0 in the north."""
    with np.load(path) as stored:
        ocean = stored["mask"]  # row 0 at 90 N, column 0 at 180 W
        rows = slice(round((90 - NORTH) * 120), round((90 - SOUTH) * 120))
        columns = slice(round((WEST + 180) * 120), round((EAST + 180) * 120))
        return np.asarray(np.logical_not(ocean[rows, columns]), np.bool_)


def _igbp(path: Path) -> NDArray[np.uint8]:
    """IGBP class 0 to 16, 0.05 degree, row 0 in the north."""
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as picture:
        box = (round((WEST + 180) * 20), round((90 - NORTH) * 20), round((EAST + 180) * 20), round((90 - SOUTH) * 20))
        return np.asarray(picture.crop(box), dtype=np.uint8)


def _elevation(path: Path) -> NDArray[np.int16]:
    """Metres above the sea (below it, 0), nodes every 1/12 degree from the north-west corner, both ends included."""
    from scipy.io import netcdf_file

    with netcdf_file(path, mmap=False) as stored:
        metres = stored.variables["ROSE"].data.copy()  # row 0 at 90 S, column 0 at 0 E
    part = metres[round((SOUTH + 90) * 12) : round((NORTH + 90) * 12) + 1, round(WEST * 12) : round(EAST * 12) + 1]
    return np.asarray(np.clip(part[::-1], 0, None).round(), np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("etopo5", "igbp", "land"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    land = _land(given.land)
    np.savez_compressed(
        Path(__file__).with_name("ground_east_asia.npz"),
        box=np.array([WEST, EAST, SOUTH, NORTH]),
        land=np.packbits(land, axis=1),
        igbp=_igbp(given.igbp),
        elevation_m=_elevation(given.etopo5),
    )


if __name__ == "__main__":
    main()
