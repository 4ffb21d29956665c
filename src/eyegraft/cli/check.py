"""`eyegraft check PATH`"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eyegraft.errors import DataError, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eyegraft.data.patch_statistics import Moments
    from eyegraft.prepare.gk2a.read import SceneFiles

HELP = "show one sample of satellite patches, of an index, or a level 1B file or scene"

_KINDS = (
    "a patch store (a folder, or DATASET/SPLIT), an old chunk (.pt), an index (.csv, .parquet), "
    "a level 1B file (gk2a_ami_le1b_*.nc) or a folder of them"
)
_SHADES = " ░▒▓█"
_LARGEST = 32  # pixels on a side that are drawn
_THERMAL_UM, _RED_UM = 10.5, 0.64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", type=Path, help=_KINDS)
    parser.add_argument("--idx", metavar="N", type=int, help="which row or scene, counted from 0; below 0 from the end (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    for line in _checked(arguments.path, arguments.idx):
        print(line.rstrip())


def _checked(path: Path, idx: int | None) -> Iterator[str]:
    store = next((place for place in (path, path.parent / "patches" / path.name) if any(place.glob("shard-*"))), None)
    stores = [place.parent for folder in (path, path / "patches") for place in sorted(folder.glob("*/shard-00000"))]
    if store is not None:
        yield from _of_store(store, idx or 0)
    elif not path.exists():
        raise DataError(f"{path} is not there", _KINDS, "check the path")
    elif stores:
        names = [place.name for place in stores]
        raise DataError(f"{path} has the splits {shown(names, 9)}", "one split", f"eyegraft check {stores[0]} --idx 0")
    elif path.suffix == ".pt":
        yield from _of_chunk(path, idx or 0)
    elif path.suffix in (".csv", ".parquet"):
        yield from _of_index(path, idx or 0)
    elif path.suffix == ".nc":
        yield from _of_band(path, idx)
    elif path.is_dir():
        yield from _of_scene(path, idx or 0)
    else:
        raise DataError(f"{path}: nothing that is known here", _KINDS, "give one of these")


def _row(place: Path, idx: int, count: int, what: str = "rows") -> int:
    """`idx` counted from 0, from the end where it is below 0."""
    if not -count <= idx < count:
        fix = f"give --idx 0 to {count - 1}" if count else "prepare it again"
        raise DataError(f"--idx {idx}: {place} has {count:,} {what}", f"{-count} to {count - 1}" if count else f"some {what}", fix)
    return range(count)[idx]


# ── patches ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_store(path: Path, idx: int) -> Iterator[str]:
    from eyegraft.data.patch_statistics import read_statistics
    from eyegraft.data.patch_store import PatchStore

    with PatchStore(path) as store:
        row = _row(path, idx, len(store))
        record = {name: values[0] for name, values in store.read([row]).items()}  # type: ignore[arg-type]
        facts = store.schema.facts
    file = path.parent / "statistics.json"
    statistics = read_statistics(file, facts.get("channels")) if file.exists() else None
    said = "simulated" if facts.get("simulated") else "measured"
    yield f"{path} · row {row:,} of {len(store):,} · split {store.schema.split} · {said}"
    yield ", ".join(f"{name} {_shape(record[name])}{record[name].dtype}" for name in sorted(record, key=lambda name: name != "x"))
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in store.manifest.counts.items() if count)
    yield f"left out of this split: {left_out or 'nothing'}"
    yield ""
    yield from _reading(record, facts, statistics["target"] if statistics is not None else None)
    yield ""
    channels = [str(name) for name in facts.get("channels", [])] or [f"channel {number}" for number in range(len(record["x"]))]
    bands = facts.get("sensor", {}).get("bands", []) if isinstance(facts.get("sensor"), dict) else []
    yield from _channels(record["x"], channels, bands, statistics["inputs"] if statistics is not None else {})
    yield ""
    yield from _pictures(record["x"], channels, bands)
    yield ""
    if statistics is None:
        yield f"statistics: none beside the split ({file})"
    else:
        yield f"statistics: {file}, from {statistics['source']}"


def _of_chunk(path: Path, idx: int) -> Iterator[str]:
    from eyegraft.data.patch_chunks import CHANNELS, read_chunk

    chunk = read_chunk(path)
    row = _row(path, idx, len(chunk["y"]))
    record = {name: values[row] for name, values in chunk.items()}
    classes = record.pop("landcover_onehot")
    record["landcover"] = int(classes.argmax()) if classes.sum() == 1 else 255
    yield f"{path} · row {row:,} of {len(chunk['y']):,} · old chunk"
    yield f"x {_shape(record['x'])}float32; x and y are z-scores here: step=convert_chunks gives them their units back"
    yield ""
    yield from _reading(record, {"target": {"name": "ta", "unit": "(z-score)"}}, None)
    yield ""
    channels = list(CHANNELS) if len(record["x"]) == len(CHANNELS) else [f"channel {number}" for number in range(len(record["x"]))]
    yield from _channels(record["x"], channels, [], {})
    yield ""
    yield from _pictures(record["x"], channels, [])
    yield ""
    beside = sorted(place.name for place in path.parent.glob("*statistics*.json"))
    yield f"statistics: not in the file; beside it {shown(beside) or 'none'}"


def _reading(record: Mapping[str, Any], facts: Mapping[str, Any], target: Moments | None) -> Iterator[str]:
    """Who measured what, where and when."""
    import numpy as np

    from eyegraft.data.patch_rows import IGBP

    number, (lat, lon, gsd_m) = int(record["stn"]), (float(value) for value in record["loc"])
    name = (facts.get("stations") or {}).get(str(number))
    where = f"{abs(lat):.4f} {'NS'[lat < 0]}  {abs(lon):.4f} {'EW'[lon < 0]}"
    pixel = f"  pixel x {record['pixel'][0]}, y {record['pixel'][1]}" if "pixel" in record else ""
    yield f"  station  {'none' if number < 0 else number}{f' {name}' if name else ''}"
    yield f"  place    {where}{pixel}, {gsd_m:g} m a pixel"
    time = np.datetime64(int(record["timestamp"]), "s")
    solar = (int(record["timestamp"]) / 3600 + lon / 15) % 24
    yield f"  time     {str(time).replace('T', ' ')} UTC, {int(solar):02}:{int(solar % 1 * 60):02} by the sun"
    y, about = float(record["y"]), facts.get("target") or {"name": "y", "unit": ""}
    unit = f" {about['unit']}" if about["unit"] else ""
    celsius = f" ({y - 273.15:.2f} °C)" if about["unit"] == "K" and y == y else ""
    score = f", {(y - target['mean']) / target['std']:+.2f} std from the mean of train" if target is not None and y == y else ""
    yield f"  {about['name']:<8} {'no target' if y != y else f'{y:.2f}{unit}{celsius}{score}'}"
    if "landcover" in record:
        cover = int(record["landcover"])
        yield f"  ground   {f'{IGBP[cover]} (IGBP {cover})' if cover < len(IGBP) else 'land cover unknown'}"
    if "time7" in record:
        yield f"  time7    {' '.join(f'{value:.3f}' for value in record['time7'])}"


def _channels(
    x: NDArray[np.float32], names: Sequence[str], bands: Sequence[Mapping[str, Any]], statistics: Mapping[str, Moments]
) -> Iterator[str]:
    """A line for each channel of one patch [C, H, W]; with statistics, where its middle pixel lies among those of train."""
    import numpy as np

    middle = x[:, x.shape[1] // 2, x.shape[2] // 2]
    yield f"  {'channel':<16} {'band':<17} {'unit':<11} {'min':>9} {'mean':>9} {'max':>9} {'middle':>9}" + (
        "   -3 std · mean · +3 std" if statistics else ""
    )
    for number, name in enumerate(names):
        band = bands[number] if number < len(bands) else None
        length = f"{band['wavelength_um']:.2f} µm" if band is not None and band.get("wavelength_um") else ""
        shown_band = f"{band['name']:<7} {length:>9}" if band is not None else ""
        unit = str(band["unit"]) if band is not None else _UNITS.get(name, "")
        values = x[number][np.isfinite(x[number])]
        numbers = [values.min(), values.mean(), values.max(), middle[number]] if values.size else [np.nan] * 4
        line = f"  {name:<16} {shown_band:<17} {unit:<11} " + " ".join(f"{_number(value):>9}" for value in numbers)
        if name in statistics:
            line += f"   {_scale((middle[number] - statistics[name]['mean']) / statistics[name]['std'])}"
        if values.size < x[number].size:
            line += f"   {x[number].size - values.size} of {x[number].size} pixels missing"
        yield line


_UNITS = {"sza": "degree", "dem": "m", "lsmask": "1 is land"}


def _number(value: float) -> str:
    if value != value:
        return "–"
    return f"{value:.4f}" if abs(value) < 2 else f"{value:.2f}"


def _scale(score: float, width: int = 23) -> str:
    """A mark between -3 and +3 standard deviations; an arrow beyond."""
    if score != score:
        return "·" * width
    place = round((score + 3) / 6 * (width - 1))
    line = list("·" * width)
    line[width // 2] = "|"
    line[min(max(place, 0), width - 1)] = "◂" if place < 0 else "▸" if place >= width else "●"
    return "".join(line)


def _pictures(x: NDArray[np.float32], names: Sequence[str], bands: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Up to three channels side by side: a thermal band, a red one, and the elevation. Light is high."""
    import numpy as np

    if x.shape[2] > _LARGEST or x.shape[1] > _LARGEST:
        return
    lengths = np.array([band.get("wavelength_um") or np.nan for band in bands], dtype=np.float64)
    wanted = [int(np.nanargmin(np.abs(lengths - um))) for um in (_THERMAL_UM, _RED_UM)] if np.isfinite(lengths).any() else [0]
    chosen = [*dict.fromkeys(wanted), *([names.index("dem")] if "dem" in names else [])]
    blocks = []
    for number in chosen:
        values = x[number]
        there = np.isfinite(values)
        low, high = (float(values[there].min()), float(values[there].max())) if there.any() else (0.0, 0.0)
        level = np.where(there, (values - low) / (high - low) if high > low else 0.5, 0) * (len(_SHADES) - 1)
        rows = [
            "".join(_SHADES[round(float(one))] * 2 if known else "··" for one, known in zip(line, mask, strict=True))
            for line, mask in zip(level, there, strict=True)
        ]
        title = f"{bands[number]['name'] if number < len(bands) else names[number]} {_number(low)} … {_number(high)}"
        width = max(len(title), 2 * x.shape[2])
        blocks.append([title.ljust(width), *(row.ljust(width) for row in rows)])
    for parts in zip(*blocks, strict=True):
        yield "  " + "   ".join(parts)


def _shape(values: NDArray[Any]) -> str:
    return f"[{', '.join(str(size) for size in values.shape)}] " if values.ndim else ""


# ── index and scenes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_index(path: Path, idx: int) -> Iterator[str]:
    from eyegraft.prepare.gk2a.index import read_index

    built = read_index(path)
    row = _row(path, idx, len(built.table))
    table = built.table
    yield f"{path} · row {row:,} of {len(table):,} · index of stations and scenes"
    yield (
        f"{table['stn'].nunique():,} stations, {table['path_bt'].nunique():,} scenes, {table['timestamp_utc'].min()} to "
        f"{table['timestamp_utc'].max()} UTC, {table['ta_k'].min():.2f} to {table['ta_k'].max():.2f} K (mean {table['ta_k'].mean():.2f})"
    )
    yield f"left out on reading: {', '.join(f'{count:,} {reason}' for reason, count in built.left_out.items()) or 'nothing'}"
    yield ""
    one = table.iloc[row]
    units = {"timestamp_utc": "UTC", "lat": "degrees north", "lon": "degrees east", "ta_k": f"K ({one['ta_k'] - 273.15:.2f} °C)"}
    for name in table.columns:
        value = one[name] if one[name] != "" else "– (computed)" if name == "path_sza" else "–"
        yield f"  {name:<17} {value} {units.get(name, '')}"


def _of_band(path: Path, idx: int | None) -> Iterator[str]:
    from eyegraft.prepare.gk2a.grid import KOREA, grid_of
    from eyegraft.prepare.gk2a.read import find_scenes, parse_name, read_band

    if idx is not None:
        raise DataError(f"--idx {idx}: {path.name} is one picture", "a folder of scenes for --idx", f"eyegraft check {path.parent} --idx 0")
    name = parse_name(path)
    window = grid_of(name.area).window_around(KOREA) if name.area == "fd" else None
    image = read_band(path, window)
    size = grid_of(name.area, name.resolution_m).shape
    unit = "K" if name.band.is_infrared else "reflectance"
    yield f"{path} · {'simulated' if image.simulated else 'measured'}"
    yield ""
    yield f"  band         {name.band.name}, {name.band.wavelength_um:g} µm, {unit}, {name.band.bits} bits a pixel"
    yield f"  grid         {name.area}, {size[0]} x {size[1]} pixels of {name.resolution_m} m"
    yield f"  nominal      {name.time:%Y-%m-%d %H:%M} UTC"
    yield f"  scanned      {image.start:%H:%M:%S} to {image.end:%H:%M:%S} UTC"
    yield f"  calibration  {image.calibration}"
    yield f"  read         {'the window of Korea' if window else 'all'}, {image.values.shape[0]} x {image.values.shape[1]} pixels of 2 km"
    yield f"  usable       {image.good.mean():.1%}; {image.flagged.mean():.1%} with quality bits that forbid it"
    values = image.values[image.good]
    yield f"  values       {_spread(values)} {unit}"
    scene = next(scene for scene in find_scenes(path.parent) if scene.time == name.time and scene.area == name.area)
    yield f"  its scene    {len(scene.files)} of 16 bands in this folder" + (
        f", without {shown(scene.missing, 16)}" if scene.missing else ""
    )


def _of_scene(path: Path, idx: int) -> Iterator[str]:
    from eyegraft.prepare.gk2a.bands import BANDS
    from eyegraft.prepare.gk2a.read import find_scenes

    scenes = find_scenes(path)
    number = _row(path, idx, len(scenes), "scenes")
    scene = scenes[number]
    whole = sum(not one.missing for one in scenes)
    span = f"{scenes[0].time:%Y-%m-%d} to {scenes[-1].time:%Y-%m-%d}"
    yield f"{path} · scene {number:,} of {len(scenes):,} ({whole:,} with all bands), {span}"
    yield f"{scene.time:%Y-%m-%d %H:%M} UTC · {scene.area} · {len(scene.files)} of {len(BANDS)} bands"
    yield ""
    yield from _bands_of(scene)


def _bands_of(scene: SceneFiles) -> Iterator[str]:
    from eyegraft.prepare.gk2a.bands import BANDS
    from eyegraft.prepare.gk2a.grid import KOREA, grid_of
    from eyegraft.prepare.gk2a.read import read_band

    window = grid_of(scene.area).window_around(KOREA) if scene.area == "fd" else None
    for name, band in BANDS.items():
        if name not in scene.files:
            yield f"  {name:<6} {band.wavelength_um:>7.3f} µm  missing"
            continue
        image = read_band(scene.files[name], window)
        unit = "K" if band.is_infrared else "reflectance"
        scan = f"{image.start:%H:%M:%S}-{image.end:%H:%M:%S}"
        usable = f"{image.good.mean():>6.1%} usable"
        yield f"  {name:<6} {band.wavelength_um:>7.3f} µm  {_spread(image.values[image.good]):<34} {unit:<11} {usable}  {scan}" + (
            "  simulated" if image.simulated else ""
        )


def _spread(values: NDArray[np.float32]) -> str:
    if not values.size:
        return "nothing measured"
    return f"{_number(values.min())} … {_number(values.mean())} … {_number(values.max())}"
