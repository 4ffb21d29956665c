"""Captions of weather maps as WeatherQA's users keep them: small palette GIFs, one case a day."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prepare.test_weatherqa import gif

KINDS = ("rgnlrad_cropped", "thea", "mcon")
SENTENCES = "The color fill shows {kind}. It is largest in the north, under southerly flow. Moisture pools there. It supports the watch over {name}."


def written(folder: Path) -> None:
    """`folder/weatherqa` with the two files that the recipe names."""
    place = folder / "weatherqa"
    place.mkdir()
    for name, year, count in (("2014-2019", 2018, 8), ("2020", 2020, 4)):
        cases = [_case(place, year, number) for number in range(1, count + 1)]
        (place / f"gemini_element_captions_{name}.json").write_text(json.dumps(cases), encoding="utf-8")


def _case(place: Path, year: int, number: int) -> dict[str, Any]:
    name = f"county {number} of {year}"
    elements = [
        {
            "image_rel_path": gif(
                place, f"md_image/{year}/{kind}/md{number:04d}_{year}05{number:02d}_17_{kind.removesuffix('_cropped')}.gif"
            ),
            "type_name": kind,
            "caption": SENTENCES.format(kind=kind, name=name),
            "error": None,
        }
        for kind in KINDS
    ]
    summary = f"Areas affected...{name} Concerning...Severe potential SUMMARY...Storms form over {name}."
    return {"case_id": f"{year}_md{number:04d}", "global_summary": summary, "elements": elements}
