"""`eyegraft map RUN --scene FILE_OR_FOLDER`"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eyegraft.serving.field import Field

HELP = "answer for every pixel of a satellite scene: a field as NetCDF or Zarr, and a picture of it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a run that was trained on GK-2A patches")
    parser.add_argument("--scene", required=True, metavar="PATH", help="a level 1B file, or a folder with them, in any tree")
    parser.add_argument("--time", metavar="YYYYmmddHHMM", type=_moment, help="which time (UTC), where the folder holds several")
    parser.add_argument("--area", choices=("ko", "fd"), help="which grid, where the folder holds both: Korea or full disk")
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        metavar=("WEST", "EAST", "SOUTH", "NORTH"),
        help="degrees; by default the whole Korea grid, and of a full disk the window around South Korea",
    )
    parser.add_argument("--stride", type=_positive, default=1, metavar="N", help="answer every N-th row and column, for slow models")
    parser.add_argument(
        "--out", metavar="FIELD", help="FIELD.nc or FIELD.zarr; by default RUN/maps/<time>_<area>.nc. The picture lies beside it"
    )
    parser.add_argument(
        "--observations", action="append", default=[], metavar="FILE", help="station records to draw upon it (again for more)"
    )
    parser.add_argument("--stations", metavar="FILE", help="table with the stations' positions, where the records hold none")
    parser.add_argument("--stage", help="the stage whose best checkpoint is used; the last by default")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="patches in one forward; the recipe's for evaluation by default")


def run(arguments: argparse.Namespace) -> None:
    from eyegraft.files import write_atomically
    from eyegraft.serving.field_file import check_target, write_field
    from eyegraft.serving.mapping import choose_scene, map_scene

    files = choose_scene(Path(arguments.scene).expanduser(), arguments.time, arguments.area)
    folder = Path(arguments.run).expanduser()
    out = Path(arguments.out).expanduser() if arguments.out else folder / "maps" / f"{files.time:%Y%m%d%H%M}_{files.area}.nc"
    check_target(out)
    box = tuple(arguments.box) if arguments.box else None
    field = map_scene(folder, files, stage=arguments.stage, box=box, stride=arguments.stride, batch_size=arguments.batch_size)
    readings = _readings(arguments, field) if arguments.observations else None
    write_field(field, out)
    write_atomically(out.with_suffix(".png"), _picture(field, readings))
    _say(field, readings)
    print(f"field: {out}\npicture: {out.with_suffix('.png')}")


def _readings(arguments: argparse.Namespace, field: Field) -> Any:
    """What thermometers showed near the time of the scene: station, lon, lat, ta_k, and `answer`, the field's at their pixels."""
    from datetime import timedelta

    from eyegraft.errors import DataError
    from eyegraft.prepare.gk2a.stations import read_observations

    if field.unit != "K":
        raise DataError(f"--observations beside a field in {field.unit!r}", "a field of temperature in K", "leave them out")
    stations = Path(arguments.stations).expanduser() if arguments.stations else None
    table = read_observations([Path(name).expanduser() for name in arguments.observations], stations).table
    late = (table["time_utc"].dt.tz_convert("UTC") - field.time).abs()
    near = table.assign(late=late)[late <= timedelta(minutes=5)].sort_values("late", kind="stable").drop_duplicates("station")
    if near.empty:
        given = f"--observations: {len(table)} readings, none within 5 minutes of {field.time:%Y-%m-%d %H:%M} UTC"
        raise DataError(given, "readings of that time", "Korean records are in KST, nine hours ahead of UTC: give those of that hour")
    return near.assign(answer=field.at(near["lon"].to_numpy(), near["lat"].to_numpy()))


def _picture(field: Field, readings: Any) -> bytes:
    from eyegraft.report.field_map import Marks, draw_field

    run, checkpoint, counts = field.facts["run"], field.facts["checkpoint"], field.counts()
    empty = [f"{count:,} {reason}" for reason, count in list(counts.items())[1:]]
    notes = [
        f"run {run}, stage {checkpoint['stage']}, epoch {checkpoint['epoch']}, checkpoint {checkpoint['sha256'][:12]}",
        f"{next(iter(counts.values())):,} pixels" + (f"; grey: {', '.join(empty)}" if empty else ""),
    ]
    notes += [f"stride {field.stride}: one pixel of {field.stride**2} was answered"] if field.stride > 1 else []
    marks = None
    if readings is not None:
        notes.append(f"dots: {_fit(readings, field.unit)}")
        marks = Marks(readings["lon"].to_numpy(), readings["lat"].to_numpy(), readings["ta_k"].to_numpy())
    lon, lat = field.lonlats()
    title = f"{field.long_name}, {field.time:%Y-%m-%d %H:%M} UTC"
    return draw_field(field.values, lon, lat, title=title, unit=field.unit, notes=notes, warning=field.warning, marks=marks)


def _say(field: Field, readings: Any) -> None:
    counts = field.counts()
    answered = next(iter(counts.values()))
    speed = f"{field.seconds:.1f} s, {answered / max(field.seconds, 1e-9):,.0f} a second"
    print(f"{answered:,} of {field.values.size:,} pixels answered in {speed}")
    for reason, count in list(counts.items())[1:]:
        print(f"  {count:,} without a value: {reason}")
    if readings is not None:
        print(_fit(readings, field.unit))
    if field.warning:
        print(field.warning)


def _fit(readings: Any, unit: str) -> str:
    """How far the field is from the thermometers that lie on it."""
    error = (readings["answer"] - readings["ta_k"]).dropna()
    if error.empty:
        return f"{len(readings)} readings, none on a pixel with a value"
    spread = (error**2).mean() ** 0.5
    return (
        f"{len(error)} readings, RMSE {spread:.2f} {unit}, bias {error.mean():+.2f} {unit}; held out only if this scene was not trained on"
    )


def _moment(text: str) -> datetime:
    from datetime import UTC

    try:
        return datetime.strptime(text, "%Y%m%d%H%M").replace(tzinfo=UTC)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 202207150300 (UTC)") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)
