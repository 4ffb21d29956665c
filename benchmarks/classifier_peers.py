"""The label recipe against scikit-learn and AutoGluon-Multimodal on the same pictures and words, in one run.

    python benchmarks/classifier_peers.py --seeds 3
    python benchmarks/classifier_peers.py --seeds 3 --autogluon ~/autogluon/bin/python --autogluon-seconds 300

Is it an animal or a plant? eyegraft prepares the data, trains and answers through its own command line, as its recipe says. The
scikit-learn models are fitted on exactly the features that its heads read: both come from one feature cache. AutoGluon runs in this Python
where it can be imported, else in the Python that is named, and fine-tunes the same two encoders whole. All that is chosen is chosen on
validation; the test split is answered once by each system.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECIPE = ("recipe=ad_classifier_small", "+experiment=named_things")
SPLITS = ("train", "val", "test")
VIEWS = {"image": ("image",), "text": ("text",), "image and text": ("image", "text")}
PENALTIES = tuple(10.0 ** (power / 2) for power in range(-10, 7))
BOOSTING = tuple({"learning_rate": rate, "max_leaf_nodes": leaves} for rate in (0.03, 0.1) for leaves in (4, 15))
FUSIONS = {"eyegraft, gated": (), "eyegraft, concat": ("fusion=concat",)}  # the first is the recipe's own
NO_AUTOGLUON = (
    "not run: it cannot be imported here (benchmarks/README.md says why not beside constraints.txt), and --autogluon names no Python"
)

Statistic = Callable[[NDArray[np.int64]], float]


@dataclass
class System:
    """One way to answer.

    Attributes:
        aurocs: the test AUROC over drawn samples, one for each seed; the table gives their mean.
        val: AUROC on validation, of the chosen settings; the mean over seeds.
        seconds: of fitting with every choice on validation, without features; the mean over seeds.
        chosen: what validation chose.
    """

    name: str
    aurocs: list[Statistic]
    val: float
    seconds: float
    chosen: dict[str, Any] = field(default_factory=dict)

    def auroc(self, rows: NDArray[np.int64]) -> float:
        return float(np.mean([auroc(rows) for auroc in self.aurocs]))


@dataclass(frozen=True)
class Split:
    """What a split is to scikit-learn: modality -> [N, D] (zeros where a sample lacks it), [N] of 0 and 1."""

    features: Mapping[str, NDArray[np.float32]]
    labels: NDArray[np.float64]

    def view(self, modalities: Sequence[str]) -> NDArray[np.float32]:
        return np.concatenate([self.features[modality] for modality in modalities], axis=1)


# ── eyegraft, as a user runs it ──────────────────────────────────────────────────────────────────────────────────────────────────────


def eyegraft(*words: str, cwd: Path, cache: Path) -> tuple[str, float]:
    """What the command printed, and the seconds of the whole process."""
    started = time.perf_counter()
    env = {**os.environ, "EYEGRAFT_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "DATA_DIR": str(cwd / "data")}
    done = subprocess.run([sys.executable, "-m", "eyegraft", *words], cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"eyegraft {' '.join(words)}\n{done.stdout}\n{done.stderr}")
    return done.stdout, time.perf_counter() - started


def trained(root: Path, cache: Path, seed: int, words: Sequence[str], threads: int, name: str) -> tuple[Path, dict[str, Any], float]:
    """The run folder, the facts of its stage and the seconds of the command."""
    beside = [f"seed={seed}", f"num_threads={threads}", f"run_root={name}", "evaluation.after_training=false", "evaluation.baselines=[]"]
    _, seconds = eyegraft("train", *RECIPE, *beside, *words, cwd=root, cache=cache)
    (run,) = (root / name).glob("*/*/run.json")
    return run.parent, json.loads(run.read_text(encoding="utf-8"))["stages"]["label"], seconds


def answered(run: Path, root: Path, cache: Path, ids: Sequence[str]) -> list[float]:
    """The probabilities that `eyegraft evaluate` wrote down for the test split, in the order of `ids`."""
    eyegraft("evaluate", str(run), "--split", "test", cwd=root, cache=cache)
    with (run / "evaluation" / "test.samples.jsonl").open(encoding="utf-8") as lines:
        rows = {row["id"]: row["answers"]["model"]["probability"] for row in map(json.loads, lines)}
    return [rows[id_] for id_ in ids]


def grafted(name: str, root: Path, cache: Path, test: Sequence[Any], seeds: Sequence[int], threads: int) -> tuple[System, dict[str, Any]]:
    """The recipe with a fusion, once a seed, from a filled cache."""
    aurocs, values, seconds, commands = [], [], [], []
    for seed in seeds:
        run, stage, command = trained(root, cache, seed, FUSIONS[name], threads, f"{name.split()[-1]}-{seed}")
        aurocs.append(auroc(answered(run, root, cache, [sample.id for sample in test]), labels(test)))
        values.append(stage["best"]["value"])
        seconds.append(stage["seconds"])
        commands.append(command)
        say(f"{name}, seed {seed}: val {values[-1]:.4f}, {seconds[-1]:.1f} s of {command:.1f} s")
    everything = np.arange(len(test))
    return System(name, aurocs, float(np.mean(values)), float(np.mean(seconds))), {
        "seeds": list(seeds),
        "test_auroc_by_seed": [one(everything) for one in aurocs],
        "val_auroc_by_seed": values,
        "fit_seconds": seconds,
        "command_seconds": commands,
    }


def from_nothing(root: Path, seed: int, threads: int, warm_value: float) -> float:
    """Seconds of the recipe's command with an empty cache; it must end where the filled cache ended."""
    _, stage, seconds = trained(root, root / "empty", seed, (), threads, "cold")
    if stage["best"]["value"] != warm_value:
        sys.exit(f"seed {seed} ended at {stage['best']['value']} from an empty cache, at {warm_value} from a filled one")
    say(f"from an empty cache: {seconds:.1f} s")
    return seconds


# ── the features that eyegraft's heads read ──────────────────────────────────────────────────────────────────────────────────────────


def frozen_features(model: Any, recipe: Any, data: Any) -> tuple[dict[str, Split], dict[str, float]]:
    """Every split's features out of the cache, and the seconds that it took to fill it and to read it."""
    from eyegraft.answering import readers_of
    from eyegraft.training.features import frozen_modalities, stored_readers

    samples = [sample for split in SPLITS for sample in data.splits[split]]
    cache, frozen = recipe.stage("label").feature_cache, frozen_modalities(model)

    @contextmanager
    def stored() -> Iterator[Mapping[str, Any]]:
        with ExitStack() as closing:
            plain = readers_of(model, recipe)
            yield stored_readers(recipe, cache, model, [samples], plain, frozen=frozen, augmented=False, closing=closing)

    started = time.perf_counter()
    with stored():
        filling = time.perf_counter() - started
    started = time.perf_counter()
    with stored() as readers:
        splits = {split: Split(_features(readers, data.splits[split]), labels(data.splits[split])) for split in SPLITS}
    return splits, {"encode": filling, "read": time.perf_counter() - started}


def _features(readers: Mapping[str, Any], samples: Sequence[Any]) -> dict[str, NDArray[np.float32]]:
    found = {}
    for modality, reader in readers.items():
        values = reader.read(samples, [None] * len(samples)).values[:, 0].numpy()  # [N, D]
        there = reader.present(samples).numpy()
        found[modality] = np.where(there[:, None], values, 0.0).astype(np.float32)
    return found


def labels(samples: Sequence[Any]) -> NDArray[np.float64]:
    return np.array([float(sample.references[0].casefold() == "true") for sample in samples])


# ── scikit-learn ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def logistic(modalities: Sequence[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Logistic regression under every penalty, on the features as they are and with each brought to variance 1 on train."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for scaled in (False, True):
        for penalty in PENALTIES:
            model = LogisticRegression(C=penalty, max_iter=2000)
            yield {"C": penalty, "scaled": scaled}, make_pipeline(StandardScaler(), model) if scaled else model


def boosting(modalities: Sequence[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    from sklearn.ensemble import HistGradientBoostingClassifier

    for settings in BOOSTING:
        yield settings, HistGradientBoostingClassifier(**settings, max_iter=100, max_features=0.2, early_stopping=False, random_state=0)


KINDS = {"logistic regression": logistic, "gradient boosting": boosting}


def fitted(kind: str, view: str, splits: Mapping[str, Split]) -> System:
    """The candidate with the largest AUROC on validation, and its answers to test; the first of equally good ones."""
    modalities = VIEWS[view]
    x, seconds = {split: found.view(modalities) for split, found in splits.items()}, time.perf_counter()
    best: tuple[float, dict[str, Any], Any] | None = None
    for settings, model in KINDS[kind](modalities):
        model.fit(x["train"], splits["train"].labels)
        value = auroc(model.predict_proba(x["val"])[:, 1], splits["val"].labels)(np.arange(len(x["val"])))
        if best is None or value > best[0]:
            best = value, settings, model
    seconds = time.perf_counter() - seconds
    assert best is not None
    answers = best[2].predict_proba(x["test"])[:, 1]
    say(f"{kind}, {view}: val {best[0]:.4f}, {best[1]}, {seconds:.1f} s")
    return System(f"{kind}, {view}", [auroc(answers, splits["test"].labels)], best[0], seconds, best[1])


# ── AutoGluon ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def autogluon(python: str, root: Path, cache: Path, data: Any, image: Any, options: argparse.Namespace) -> tuple[System, dict[str, Any]]:
    """MultiModalPredictor in its own process: the same encoders' weights, all trained, for a number of seconds at most."""
    import torch
    from safetensors.torch import load_file

    folder = root / "autogluon"
    (folder / "image").mkdir(parents=True)
    (weights,) = (cache / "pretrained").glob("efficientnet_lite0-*/model.safetensors")
    (words,) = (cache / "pretrained").glob("all-minilm-*")
    shutil.copytree(words, folder / "text")
    tensors = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("classifier.")}
    torch.save(tensors, folder / "image" / "pytorch_model.bin")
    facts = {"architecture": "tf_efficientnet_lite0", "num_features": image.token_dim, "input_size": [3, *image.spec.size]}
    facts |= {"mean": list(image.spec.mean), "std": list(image.spec.std)}
    (folder / "image" / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    tables = {
        split: [
            {"image": str(sample.image), "text": sample.text, "label": int(label)} for sample, label in zip(of, labels(of), strict=True)
        ]
        for split, of in data.splits.items()
    }
    job = {"tables": tables, "seconds": options.autogluon_seconds, "threads": options.num_threads}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    done = subprocess.run([python, __file__, "--inside-autogluon", str(folder)], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"autogluon: {done.stdout}\n{done.stderr}")
    found = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    everything = np.arange(len(data.splits["val"]))
    val = auroc(found["val"], labels(data.splits["val"]))(everything)
    say(f"AutoGluon {found['version']}: val {val:.4f}, {found['seconds']:.1f} s")
    system = System("AutoGluon, encoders fine-tuned", [auroc(found["test"], labels(data.splits["test"]))], val, found["seconds"])
    return system, {"version": found["version"], "limit_seconds": options.autogluon_seconds}


def inside_autogluon(folder: Path) -> None:
    """What the other Python does; eyegraft is not there."""
    import pandas
    import torch
    from autogluon.multimodal import MultiModalPredictor, __version__

    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    tables = {split: pandas.DataFrame(rows) for split, rows in job["tables"].items()}
    settings = {
        "model.names": ["timm_image", "hf_text", "fusion_mlp"],
        "model.timm_image.checkpoint_name": str(folder / "image"),
        "model.hf_text.checkpoint_name": str(folder / "text"),
        "model.hf_text.pooling_mode": "mean",
        "env.accelerator": "cpu",
        "env.num_gpus": 0,
        "env.precision": "32",
        "env.num_workers": 0,
        "env.num_workers_inference": 0,
    }
    kinds = {"image": "image_path", "text": "text"}
    predictor = MultiModalPredictor(label="label", problem_type="binary", eval_metric="roc_auc", path=str(folder / "model"))
    started = time.perf_counter()
    predictor.fit(
        tables["train"], tuning_data=tables["val"], time_limit=job["seconds"], hyperparameters=settings, column_types=kinds, seed=0
    )
    seconds = time.perf_counter() - started
    answers = {split: predictor.predict_proba(tables[split].drop(columns="label"))[1].tolist() for split in ("val", "test")}
    (folder / "answers.json").write_text(json.dumps({**answers, "seconds": seconds, "version": __version__}), encoding="utf-8")


# ── scores ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def auroc(probabilities: Any, targets: NDArray[np.float64]) -> Statistic:
    """AUROC over drawn samples, as eyegraft scores it."""
    from eyegraft.metrics.classification import score_binary

    return score_binary(probabilities, targets, 0.5).statistics["auroc"]


def scored(systems: Sequence[System], drawing: Any) -> list[dict[str, Any]]:
    """A row a system: test AUROC, and its difference to the first, each with its 95 % interval over the same draws of whole groups."""
    from eyegraft.metrics._bootstrap import paired_statistic_interval, statistic_interval

    how = drawing.size, drawing.num_resamples, drawing.seed, drawing.groups
    rows = []
    for system in systems:
        row = {"system": system.name, "val_auroc": system.val, "seconds": system.seconds, "chosen": system.chosen}
        row["test_auroc"] = statistic_interval(system.auroc, *how)
        if system is not systems[0]:
            row["less_eyegraft"] = paired_statistic_interval(system.auroc, systems[0].auroc, *how)
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    def cell(numbers: Sequence[float] | None, sign: str = "") -> str:
        return "{:{s}.3f} [{:{s}.3f}, {:{s}.3f}]".format(*numbers, s=sign) if numbers else ""

    lines = [f"{'system':<36}{'val':>6}  {'test AUROC':<24}{'less eyegraft':<27}{'fit, s':>7}"]
    lines += [
        f"{row['system']:<36}{row['val_auroc']:>6.3f}  {cell(row['test_auroc']):<24}"
        f"{cell(row.get('less_eyegraft'), '+'):<27}{row['seconds']:>7.1f}"
        for row in rows
    ]
    return "\n".join(lines)


def verdict(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows[1:]:
        _, low, high = row["less_eyegraft"]
        yield f"{row['system']}: " + (
            "beats eyegraft" if low > 0 else "loses to eyegraft" if high < 0 else "cannot be told apart from eyegraft"
        )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measured(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    cache = root / "cache"
    os.environ |= {"EYEGRAFT_CACHE": str(cache), "DATA_DIR": str(root / "data"), "HF_HUB_OFFLINE": "1"}
    _, preparing = eyegraft("prepare", *RECIPE, cwd=root, cache=cache)
    say(f"prepared in {preparing:.1f} s")

    import sklearn.ensemble  # noqa: F401, a limit of threads reaches only the libraries that are loaded
    import torch
    from threadpoolctl import threadpool_limits

    from eyegraft.composition import load_recipe
    from eyegraft.data.samples import load_samples
    from eyegraft.evaluation.drawing import Drawing
    from eyegraft.pretrained import ready
    from eyegraft.training.building import build_model

    ready()
    torch.set_num_threads(options.num_threads)
    recipe = load_recipe(RECIPE[0].partition("=")[2], *RECIPE[1:])
    data = load_samples(recipe.data)
    model = build_model(recipe).requires_grad_(False)
    splits, features = frozen_features(model, recipe, data)
    say("features: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in features.items()))
    test, seeds, threads = data.splits["test"], range(options.seeds), options.num_threads
    systems, facts = [], {}
    for name in FUSIONS:
        system, facts[name] = grafted(name, root, cache, test, seeds, threads)
        systems.append(system)
    own = facts[systems[0].name]
    own["command_seconds_from_an_empty_cache"] = from_nothing(root, seeds[0], threads, own["val_auroc_by_seed"][0])
    with threadpool_limits(threads):  # numpy read OMP_NUM_THREADS before it was set
        systems += [fitted(kind, view, splits) for kind in KINDS for view in VIEWS]
    python = options.autogluon or (sys.executable if importlib.util.find_spec("autogluon") else None)
    facts["autogluon"] = NO_AUTOGLUON
    if python is not None:
        system, facts["autogluon"] = autogluon(python, root, cache, data, model.encoders["image"], options)
        systems.append(system)
    drawing = Drawing.of(test, recipe)
    return {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": threads, "load": os.getloadavg()},
        "samples": {split: len(data.splits[split]) for split in SPLITS},
        "resampled": drawing.unit,
        "seconds": {"prepare": preparing, "features": features},
        **facts,
        "systems": scored(systems, drawing),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of eyegraft, from seed 0; the table gives their mean")
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--autogluon", metavar="PYTHON", help="the Python of an environment that has autogluon.multimodal")
    parser.add_argument("--autogluon-seconds", type=int, default=300, help="what it may train at most")
    parser.add_argument("--inside-autogluon", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("classifier_peers.json"))
    options = parser.parse_args()
    if options.inside_autogluon is not None:
        inside_autogluon(options.inside_autogluon)
        return
    os.environ |= {"OMP_NUM_THREADS": str(options.num_threads)}
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="classifier_peers_") as folder:
        found = measured(Path(folder), options)
    options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found["systems"]))
    print(*verdict(found["systems"]), f"intervals: {found['resampled']}", f"AutoGluon: {found['autogluon']}", sep="\n")


if __name__ == "__main__":
    main()
