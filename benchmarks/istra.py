"""Daily air temperature from land-surface temperature at real stations: the recipe beside scikit-learn, on the same folds.

    ISTRA_DIR=~/istra python benchmarks/istra.py
    ISTRA_DIR=~/istra python benchmarks/istra.py --seeds 1 --choose

Every station is held out once, and every block of 8 days is held out once, for each of five dealings into five folds. eyegraft prepares,
trains and evaluates through its own functions, as the recipe `lst_stations` says; its validation chooses the epoch, nothing else. The
scikit-learn models have no use for a validation: they are fitted on its rows as well. `--choose` is how the recipe's settings were found:
it prints validation errors of the first dealing and looks at no test row.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
TEST = {"station": "test_new_station", "block": "test"}
OTHERS = {"station": ("test", "test_new_both"), "block": ("test_new_station", "test_new_both")}
DAY = ("+context_encoder.categories={day: 367}", "train.epochs=4")
OURS: dict[str, dict[str, tuple[str, ...]]] = {
    "station": {"eyegraft": (), "eyegraft, day known": DAY},
    "block": {"eyegraft": (), "eyegraft without the patch": ("train.modality=context_only",)},
}
CANDIDATES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "without place": ("context_encoder.numbers=[]",),
    "gated": ("fusion=gated", "fusion.dim=64"),
    "weight decay and dropout 0.3": ("train.weight_decay=0.3", "head.dropout=0.3"),
    "4 epochs": ("train.epochs=4",),
    "10 epochs": ("train.epochs=10",),
}
Key = tuple[str, str]
Floats = NDArray[np.float64]


# ── eyegraft ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def recipe_of(root: Path, hold_out: str, seed: int, fold: int, words: Sequence[str]) -> Any:
    """The recipe on one fold, whose patches are made where they are not there."""
    from eyegraft.composition import load_recipe
    from eyegraft.prepare import prepare_data

    place = root / f"{hold_out}-{seed}-{fold}"
    recipe = load_recipe(
        "lst_stations",
        f"prepare.held.out={hold_out}",
        f"prepare.held.folds={FOLDS}",
        f"prepare.held.fold={fold}",
        f"prepare.held.seed={seed}",
        f"data.base_dir={place}",
        *(f"~data.satellite.patches.{split}" for split in OTHERS[hold_out]),
        f"run_root={place}/runs",
        f"seed={seed}",
        "num_threads=1",
        f"evaluation.splits=[{TEST[hold_out]}]",
        "evaluation.baselines=[climatology]",
        "evaluation.slices=[]",
        "evaluation.num_resamples=1",
        *words,
    )
    if not (place / "manifest.json").exists():
        prepare_data(recipe)
    return recipe


def grafted(root: Path, hold_out: str, seed: int, fold: int, words: Sequence[str]) -> dict[str, dict[Key, float]]:
    """Answers to the test rows by station and time: `model`, and the library's own `climatology`."""
    from eyegraft.evaluation import evaluate
    from eyegraft.training import train

    run = train(recipe_of(root, hold_out, seed, fold, words), fresh=True)
    evaluate(run)
    found: dict[str, dict[Key, float]] = {}
    with (run / "evaluation" / f"{TEST[hold_out]}.samples.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            for system, answer in row["answers"].items():
                found.setdefault(system, {})[row["meta"]["station"], row["meta"]["time"]] = answer["value"]
    return found


def choose(root: Path, seed: int) -> None:
    """Validation error of each candidate, of the epoch that it chooses itself."""
    from eyegraft.training import train

    for hold_out, candidates in {
        "block": CANDIDATES,
        "station": {f"day, {name}": (*DAY, *words) for name, words in CANDIDATES.items()},
    }.items():
        for name, words in candidates.items():
            squares = rows = 0.0
            for fold in range(FOLDS):
                recipe = recipe_of(root, hold_out, seed, fold, words)
                facts = json.loads((train(recipe, fresh=True) / "run.json").read_text(encoding="utf-8"))
                count = json.loads((Path(recipe.data.base_dir) / "manifest.json").read_text(encoding="utf-8"))["rows"]["val"]
                squares, rows = squares + count * facts["stages"]["ta"]["best"]["value"] ** 2, rows + count
            print(f"{hold_out:<8} {name:<36} validation RMSE {np.sqrt(squares / rows):.3f} K", flush=True)


# ── scikit-learn ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Rows:
    """All readings of one fold, the columns that the models read, and which of them are tested."""

    def __init__(self, place: Path, test: str) -> None:
        from eyegraft.data.patch_rows import PatchRows, opened

        parts = [PatchRows(opened(place / "patches" / split)) for split in ("train", "val", test)]
        self.tested, self.of_val = (
            np.concatenate([np.full(len(part), split == one) for part, split in zip(parts, ("train", "val", test), strict=True)])
            for one in (test, "val")
        )
        self.station, time, day_of_year = (
            np.concatenate([part.column(name) for part in parts]) for name in ("station", "time", "day_of_year")
        )
        self.time = np.array([f"{moment}Z" for moment in np.datetime_as_string(time, unit="m")])
        self.day = (time - np.datetime64("2008-01-01", "D")).astype("timedelta64[D]").astype(np.int64)  # 2009 begins with 366
        self.y = np.concatenate([part.targets for part in parts])
        patch = np.concatenate([part.x() for part in parts])[:, 0]  # [N, H, W]
        angle = day_of_year * (2 * np.pi / 365.2425)
        self.columns = {
            "season": np.stack([np.sin(angle), np.cos(angle)], axis=1),
            "place": np.stack([np.concatenate([part.column(name) for part in parts]) for name in ("lat", "lon")], axis=1),
            "centre": patch[:, 4, 4][:, None],
            "patch": patch.reshape(len(patch), -1),
            "mean of the day": self._mean_of_the_day()[:, None],
        }

    @property
    def keys(self) -> list[Key]:
        return list(zip(self.station[self.tested].tolist(), self.time[self.tested].tolist(), strict=True))

    def _mean_of_the_day(self) -> Floats:
        """[N] of the other training stations, so that no row finds itself in it; NaN on days that training has not."""
        days, places = np.unique(self.day, return_inverse=True)
        known = ~self.tested
        sums, counts = np.bincount(places[known], self.y[known], len(days)), np.bincount(places[known], minlength=len(days))
        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            return (sums[places] - np.where(known, self.y, 0)) / (counts[places] - known)


def boosted(*names: str, on_val: bool = True) -> Callable[[Rows], Floats]:
    """HistGradientBoostingRegressor as it comes; it reads NaN as missing. `on_val`: the rows of validation are fitted too."""

    def answer(rows: Rows) -> Floats:
        from sklearn.ensemble import HistGradientBoostingRegressor

        x = np.concatenate([rows.columns[name] for name in names], axis=1)
        fitted = ~rows.tested & (on_val | ~rows.of_val)
        model = HistGradientBoostingRegressor(random_state=0).fit(x[fitted], rows.y[fitted])
        return np.asarray(model.predict(x[rows.tested]))

    return answer


def ridged(rows: Rows) -> Floats:
    """Linear in the centre pixel (missing: its mean, and a flag), season and place."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    centre = rows.columns["centre"]
    there = np.isfinite(centre)
    x = np.concatenate(
        [np.where(there, centre, np.nanmean(centre[~rows.tested])), there, rows.columns["season"], rows.columns["place"]], axis=1
    )
    model = make_pipeline(StandardScaler(), Ridge()).fit(x[~rows.tested], rows.y[~rows.tested])
    return np.asarray(model.predict(x[rows.tested]))


PEERS: dict[str, Callable[[Rows], Floats]] = {
    "boosting: patch, season, place": boosted("patch", "season", "place"),
    "the same, on the rows of train alone": boosted("patch", "season", "place", on_val=False),
    "boosting: patch, season": boosted("patch", "season"),
    "boosting: centre pixel, season": boosted("centre", "season"),
    "boosting: season": boosted("season"),
    "ridge: centre pixel, season, place": ridged,
}
PEERS_OF = {
    "station": {
        **PEERS,
        "boosting: patch, season, place, mean of the day": boosted("patch", "season", "place", "mean of the day"),
        "the day's mean of the other stations": lambda rows: rows.columns["mean of the day"][rows.tested, 0],
    },
    "block": PEERS,
}


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def measured(root: Path, hold_out: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Every row answered once a seed by every system: {system: [S, N]}, with the rows' truth, station and block."""
    answers: dict[str, list[dict[Key, float]]] = {}
    truth: dict[Key, float] = {}
    block: dict[Key, int] = {}
    seconds: dict[str, float] = {}
    for seed in seeds:
        of_seed: dict[str, dict[Key, float]] = {}
        for fold in range(FOLDS):
            for name, words in OURS[hold_out].items():
                started = time.perf_counter()
                found = grafted(root, hold_out, seed, fold, words)
                seconds[name] = seconds.get(name, 0) + time.perf_counter() - started
                of_seed.setdefault(name, {}).update(found["model"])
                of_seed.setdefault("climatology", {}).update(found["climatology"])
            rows = Rows(root / f"{hold_out}-{seed}-{fold}", TEST[hold_out])
            keys = rows.keys
            truth.update(zip(keys, rows.y[rows.tested].tolist(), strict=True))
            block.update(zip(keys, (rows.day[rows.tested] // 8).tolist(), strict=True))
            for name, peer in PEERS_OF[hold_out].items():
                started = time.perf_counter()
                of_seed.setdefault(name, {}).update(zip(keys, peer(rows).tolist(), strict=True))
                seconds[name] = seconds.get(name, 0) + time.perf_counter() - started
        for name, given in of_seed.items():
            answers.setdefault(name, []).append(given)
        say(f"{hold_out}, seed {seed}: " + ", ".join(f"{name} {rmse_of(given, truth):.2f}" for name, given in of_seed.items()))
    keys = sorted(truth)
    return {
        "answers": {name: np.array([[given[key] for key in keys] for given in of]) for name, of in answers.items()},
        "truth": np.array([truth[key] for key in keys]),
        "station": [key[0] for key in keys],
        "block": [str(block[key]) for key in keys],
        "fit_seconds": {name: spent / len(seeds) / FOLDS for name, spent in seconds.items()},
    }


def rmse_of(given: Mapping[Key, float], truth: Mapping[Key, float]) -> float:
    return float(np.sqrt(np.mean([(value - truth[key]) ** 2 for key, value in given.items()])))


def scored(found: Mapping[str, Any], unit: str, num_resamples: int) -> list[dict[str, Any]]:
    """A row a system, the best first: RMSE (the mean over seeds), and its difference to each of ours over the same draws of whole units."""
    from eyegraft.metrics._bootstrap import paired_statistic_interval, statistic_interval

    def statistic(name: str) -> Callable[[NDArray[np.int64]], float]:
        squares = (found["answers"][name] - found["truth"]) ** 2  # [S, N]
        return lambda rows: float(np.sqrt(squares[:, rows].mean(axis=1)).mean())

    how = len(found["truth"]), num_resamples, 0, found[unit]
    ours = [name for name in found["answers"] if name.startswith("eyegraft")]
    table = []
    for name in found["answers"]:
        by_seed = np.sqrt(((found["answers"][name] - found["truth"]) ** 2).mean(axis=1))
        row: dict[str, Any] = {"system": name, "rmse_kelvin": statistic_interval(statistic(name), *how), "by_seed": by_seed.tolist()}
        row["less"] = {one: paired_statistic_interval(statistic(name), statistic(one), *how) for one in ours if one != name}
        row["fit_seconds"] = found["fit_seconds"].get(name)
        table.append(row)
    return sorted(table, key=lambda row: row["rmse_kelvin"][0])


def shown(title: str, table: Sequence[Mapping[str, Any]]) -> str:
    def cell(numbers: Sequence[float], sign: str = "") -> str:
        return "{:{s}.2f} [{:{s}.2f}, {:{s}.2f}]".format(*numbers, s=sign)

    lines = [f"{title}\n{'system':<50}{'RMSE (K)':<20}less eyegraft"]
    for row in table:
        differences = "  ".join(f"{cell(numbers, '+')} ({one})" for one, numbers in row["less"].items())
        lines.append(f"{row['system']:<50}{cell(row['rmse_kelvin']):<20}{differences}")
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="dealings into folds, from 0")
    parser.add_argument("--hold-out", choices=list(TEST), nargs="+", default=list(TEST))
    parser.add_argument("--choose", action="store_true", help="compare settings on validation alone")
    parser.add_argument("--num-resamples", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("istra.json"))
    options = parser.parse_args()
    if not os.environ.get("ISTRA_DIR"):
        sys.exit("ISTRA_DIR names no folder; docs/recipes/lst_stations.md says what lies in it")
    os.environ |= {"OMP_NUM_THREADS": "1", "ISTRA_DIR": str(Path(os.environ["ISTRA_DIR"]).expanduser().absolute())}
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="istra_") as folder:
        os.environ["EYEGRAFT_CACHE"] = f"{folder}/cache"
        if options.choose:
            choose(Path(folder), 0)
            return
        results = {}
        for hold_out in options.hold_out:
            found = measured(Path(folder), hold_out, range(options.seeds))
            for unit in dict.fromkeys((hold_out, "station")):
                table = results[f"{hold_out}s held out, whole {unit}s drawn"] = scored(found, unit, options.num_resamples)
                print(shown(f"\n{hold_out}s held out; intervals: whole {unit}s drawn", table), flush=True)
    facts = {"rows": len(found["truth"]), "seeds": options.seeds, "folds": FOLDS, "cores": os.cpu_count(), "load": os.getloadavg()}
    options.out.write_text(json.dumps({**facts, "tables": results}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
