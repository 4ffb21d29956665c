"""Training and answering texts of mixed length: eyegraft beside Hugging Face's Trainer and `generate`, in one run.

    python benchmarks/text_training.py
    python benchmarks/text_training.py --steps 8 --answers 64

The language model is SmolLM2-135M with its real weights, adapted by PEFT's LoRA of rank 16 on all linear layers of it, float32 unless a
row says otherwise, batches of 8. Texts are drawn: 20,000 captions and instructions of 12 to 400 tokens, of which a caption learns all but
eight and an instruction the last 60 %. Images are left out of the training on both sides: the time goes into the language model.

Every system trains in a process of its own, and they take their steps in turn, so that what else runs on the machine slows all of them.
The timed steps are spread over the batches of an epoch: sorted by the tokens that they cost, one from the middle of each part. Peak memory
is that of the epoch's heaviest batch, which each has trained on before. All start from the same loss on the same texts.

Answers are made of pictures that ship with eyegraft, by the demo's encoder and SmolLM2, with the texts compared one by one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eyegraft.data.batches import Examples, batch_order
from eyegraft.data.text import Encoded
from eyegraft.types import IGNORE, ImageSpec, Sample, Tokens

BATCH, LONGEST, TEXTS, PACKING = 8, 400, 20_000, 512
RATE = 1e-9
"""So small that every step has the loss of the weights as they came."""
SYSTEMS = {
    "trainer_max": "transformers.Trainer, padded to 400 tokens",
    "trainer_random": "transformers.Trainer, random batches padded to their longest",
    "trainer_grouped": "transformers.Trainer, its own group_by_length",
    "grouped": "**eyegraft, as it comes (grouped)**",
    "packed": "**eyegraft, packing=512**",
    "packed_bf16": "**eyegraft, packing=512, bfloat16 weights**",
}


# ── the work ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def texts(count: int = TEXTS) -> list[Encoded]:
    """Six captions to four instructions."""
    drawn, found = random.Random(0), []
    for _ in range(count):
        caption = drawn.random() < 0.6
        length = round(drawn.gauss(28, 8)) if caption else round(drawn.lognormvariate(5.1, 0.55))
        length = min(LONGEST, max(12, length))
        learned = length - 8 if caption else round(0.6 * length)
        ids = tuple(drawn.randrange(100, 40_000) for _ in range(length))
        found.append(Encoded(ids, (IGNORE,) * (length - learned) + ids[length - learned :]))
    return found


def epoch(system: str, lengths: Sequence[int]) -> list[list[int]]:
    """The batches of one epoch, as the system orders them."""
    if system == "trainer_grouped":
        from transformers.trainer_pt_utils import get_length_grouped_indices

        order = get_length_grouped_indices(list(lengths), BATCH, generator=torch.Generator().manual_seed(0))
        return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return batch_order(lengths, BATCH, seed=0, epoch=1, grouped=system == "grouped")


def cost(system: str, lengths: Sequence[int], batch: Sequence[int]) -> int:
    """Tokens that go through the language model, padding included."""
    if system == "trainer_max":
        return LONGEST * len(batch)
    if system.startswith("packed"):
        return sum(lengths[place] for place in batch)
    return max(lengths[place] for place in batch) * len(batch)


def chosen(system: str, lengths: Sequence[int], steps: int) -> list[list[int]]:
    """A batch of the same eight captions for all, the heaviest of the epoch, then those that are timed."""
    batches = epoch(system, lengths)
    ranked = sorted(batches, key=lambda batch: (cost(system, lengths, batch), sum(lengths[place] for place in batch)))
    same = [place for place, length in enumerate(lengths) if length < 40][:BATCH]
    return [same, ranked[-1], *(ranked[int((step + 0.5) * len(ranked) / steps)] for step in range(steps))]


def real_share(system: str, lengths: Sequence[int]) -> float:
    return sum(lengths) / sum(cost(system, lengths, batch) for batch in epoch(system, lengths))


# ── one system, in a process of its own: it takes a step for each line that it reads ────────────────────────────────────────────────


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


class Clock:
    """Waits until it is this process's turn, and says what the step took."""

    def begin(self) -> None:
        sys.stdin.readline()
        self.started, self.used = time.perf_counter(), time.process_time()

    def end(self) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        say(seconds=time.perf_counter() - self.started, cpu=time.process_time() - self.used, peak_gib=peak)
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # those that wait their turn would together keep more than a small machine has


def train_theirs(system: str, encoded: list[Encoded], batches: list[list[int]]) -> None:
    from eyegraft.pretrained import ready, resolve

    ready()
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    name, clock = resolve("packaged:smollm2-135m-instruct"), Clock()
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    tokenizer = AutoTokenizer.from_pretrained(name)
    padding = {"padding": "max_length", "max_length": LONGEST} if system == "trainer_max" else {"padding": True}
    collate = DataCollatorForSeq2Seq(tokenizer, **padding)
    rows = [{"input_ids": list(encoded[place].input_ids), "labels": list(encoded[place].labels)} for batch in batches for place in batch]

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end()

        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            if "loss" in logs:
                say(loss=float(logs["loss"]))

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        InOrder(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Steps()]).train()


class NoPicture:
    """Reads nothing."""

    random = slow = False

    def read(self, samples: Sequence[Sample], seeds: Any) -> torch.Tensor:
        return torch.zeros(len(samples))

    def present(self, samples: Sequence[Sample]) -> torch.Tensor:
        return torch.ones(len(samples), dtype=torch.bool)


class NoTokens(torch.nn.Module):
    """An encoder that gives none."""

    spec, token_dim, backbone = ImageSpec((8, 8), (0.5,) * 3, (0.5,) * 3), 576, None

    def forward(self, pictures: torch.Tensor) -> Tokens:
        return Tokens(torch.zeros(len(pictures), 0, self.token_dim), torch.zeros(len(pictures), 0, dtype=torch.bool))


def train_ours(system: str, encoded: list[Encoded], batches: list[list[int]]) -> None:
    import eyegraft
    from eyegraft.model import Graft, assemble
    from eyegraft.training.building import build_objective, build_task, make_fabric
    from eyegraft.training.loop import StageTrainer
    from eyegraft.training.stage_data import StageData
    from eyegraft.tuning import make_plan

    clock = Clock()
    recipe = eyegraft.load_recipe(
        "demo",
        "train.tune.head.lora={rank: 16, alpha: 16, target_modules: all-linear}",
        f"train.learning_rate={RATE}",
        f"train.tune.head.learning_rate={RATE}",
        f"train.batch_size={BATCH}",
        "train.epochs=1",
        "train.scheduler_type=constant",
        "train.log_every=1",
        f"train.packing={PACKING if system.startswith('packed') else 'null'}",
        f"head.dtype={'bfloat16' if system.endswith('bf16') else 'float32'}",
    )

    class Given(Examples):
        def order(self, *_: Any, **__: Any) -> list[list[int]]:
            return batches

    class Stepped(StageTrainer):
        def _probe(self) -> None:
            pass

        def _save(self, *_: Any, **__: Any) -> None:
            pass

        def _step(self, group: Any) -> float | None:
            clock.begin()
            loss = super()._step(group)
            clock.end()
            say(loss=loss)
            return loss

    settings, whole = recipe.stage("name"), assemble(recipe)
    model = Graft({"image": NoTokens()}, {"image": {}}, whole.fusion, whole.head)
    task = build_task(recipe, settings)
    objective, plan = build_objective(task, settings), make_plan(model, settings)
    samples = [Sample(str(place), None) for place in range(len(encoded))]
    data = StageData(Given(samples, encoded, {"image": NoPicture()}), None, [], 0, 0)  # type: ignore[dict-item]
    with tempfile.TemporaryDirectory() as folder:
        fabric = make_fabric(recipe, settings.precision)
        Stepped(recipe, "name", Path(folder), fabric, model, objective, task, plan, data, [], []).run()


def train_alone(system: str, steps: int) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    encoded = texts()
    batches = chosen(system, [len(text.input_ids) for text in encoded], steps)
    (train_theirs if system.startswith("trainer") else train_ours)(system, encoded, batches)


# ── all systems, in turn ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Child:
    def __init__(self, system: str, steps: int) -> None:
        command = [sys.executable, __file__, "--alone", system, "--steps", str(steps)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.system, self.losses, self.found = system, [], []  # type: ignore[var-annotated]

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        while not self._read():
            pass

    def _read(self) -> bool:
        """Whether a step has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise SystemExit(f"{self.system} ended early:\n{self.process.stderr.read()[-3000:]}")
        if not line.startswith('{"'):  # the Trainer prints dicts of its own
            return False
        facts = json.loads(line)
        (self.losses if "loss" in facts else self.found).append(facts)
        return "seconds" in facts

    def close(self) -> None:
        out, _ = self.process.communicate()
        self.losses += [json.loads(line) for line in out.splitlines() if line.startswith('{"loss"')]


def training(steps: int) -> list[str]:
    """Prints a table; gives the claims that do not hold."""
    lengths = [len(text.input_ids) for text in texts()]
    print(f"{TEXTS:,} texts, mean {np.mean(lengths):.0f} tokens; real tokens among all: ", end="")
    print(", ".join(f"{system} {real_share(system, lengths):.2f}" for system in SYSTEMS), flush=True)
    children = {system: Child(system, steps) for system in SYSTEMS}
    for step in range(steps + 2):
        for child in children.values():
            child.step()
            print(f"step {step} of {steps + 2}: {child.system} {child.found[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    wall, cpu, peak = {}, {}, {}
    for system, child in children.items():
        child.close()
        tokens = sum(lengths[place] for batch in chosen(system, lengths, steps)[2:] for place in batch)
        wall[system] = tokens / sum(facts["seconds"] for facts in child.found[2:])
        cpu[system] = tokens / sum(facts["cpu"] for facts in child.found[2:])
        peak[system] = max(facts["peak_gib"] for facts in child.found)
    print("\n| system | real tokens/s | per CPU-second | peak GiB | first loss |\n|---|---|---|---|---|")
    for system, name in SYSTEMS.items():
        loss = children[system].losses[0]["loss"]
        print(f"| {name} | {wall[system]:.1f} | {cpu[system]:.1f} | {peak[system]:.1f} | {loss:.4f} |")
    claims = [
        ("grouped", "trainer_max", 2.5),
        ("grouped", "trainer_random", 1.2),
        ("packed", "trainer_max", 4.0),
        ("packed", "trainer_random", 1.8),
        ("packed_bf16", "trainer_random", 2.5),
    ]
    print("\n| claim | wanted | by the clock | by CPU-seconds |\n|---|---|---|---|")
    failed = []
    for ours, theirs, wanted in claims:
        ratios = wall[ours] / wall[theirs], cpu[ours] / cpu[theirs]
        print(f"| {ours} against {theirs} | {wanted} | {ratios[0]:.1f} | {ratios[1]:.1f} |")
        failed += [f"{ours} against {theirs}"] * (max(ratios) < wanted)
    for theirs, allowed in (("trainer_max", 0.5), ("trainer_random", 0.65)):
        share = peak["packed"] / peak[theirs]
        print(f"| peak memory, packed / {theirs} | below {allowed} | {share:.2f} | |")
        failed += [f"memory against {theirs}"] * (share >= allowed)
    losses = [children[system].losses[0]["loss"] for system in SYSTEMS if not system.endswith("bf16")]
    return failed + ["equal losses"] * (max(losses) - min(losses) > 1e-3)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

QUESTIONS = (
    "What is drawn here?",
    "Which colours does the picture have, and which of them covers most of it?",
    "Is it an animal?",
    "Describe the drawing in one sentence for somebody who cannot see it.",
    "How many things are there?",
    "Name the thing, and say what it is used for or where it lives.",
    "Day or night?",
    "Would this drawing look the same upside down, and why do you think so?",
)


def answering(count: int) -> list[str]:
    """Prints a table; gives the claims that do not hold."""
    import eyegraft
    from eyegraft.answering import answer_samples, readers_of
    from eyegraft.model import assemble
    from eyegraft.training.building import build_task

    words = ("head.dtype=float32", "pooling=none", "connector=mlp", "tasks.name.max_new_tokens=24", "tasks.name.template=auto")
    recipe = eyegraft.load_recipe("demo", *words)
    torch.manual_seed(0)
    model = assemble(recipe).eval()
    task, readers = build_task(recipe, recipe.stage("name")), readers_of(model, recipe)
    folder = Path(eyegraft.__file__).parent / "prepare" / "drawings" / "images"
    pictures = sorted(folder.glob("*/*.webp"))[:: max(1, len(list(folder.glob("*/*.webp"))) // count)][:count]
    works = {
        "many pictures, a question each": [Sample(str(n), p, prompt=QUESTIONS[n % len(QUESTIONS)]) for n, p in enumerate(pictures)],
        "one picture, many questions": [Sample(str(n), pictures[0], prompt=f"{QUESTIONS[n % len(QUESTIONS)]} ({n})") for n in range(count)],
    }

    def theirs(samples: Sequence[Sample]) -> list[str]:
        """One `generate` a question, with its picture before it."""
        tokenizer, said = model.head.tokenizer, []
        for sample in samples:
            with torch.no_grad():
                image = model.connect(model.encode(Examples([sample], [Encoded()], readers).batch([0], [None], 0))).values
                ids = torch.tensor([task.encode(sample, tokenizer, learn=False).input_ids])
                embeds = torch.cat([image, model.head.backbone.get_input_embeddings()(ids)], dim=1)
                mask = torch.ones(embeds.shape[:2], dtype=torch.long)
                made = model.head.backbone.generate(
                    inputs_embeds=embeds,
                    attention_mask=mask,
                    max_new_tokens=24,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                )
            said.append(tokenizer.decode(made[0], skip_special_tokens=True).rstrip("\ufffd").strip())
        return said

    def ours(samples: Sequence[Sample]) -> list[str]:
        return answer_samples(model, task, samples, readers, batch_size=count)

    failed = []
    print("\n| answers | one at a time, s each | **eyegraft**, s each | times by the clock | by CPU-seconds | same texts |")
    print("|---|---|---|---|---|---|")
    for (name, samples), wanted in zip(works.items(), (3.0, 5.0), strict=True):
        alone = samples[:: max(1, count // 12)]  # one at a time takes too long for all of them
        spent, said = {theirs: np.zeros(2), ours: np.zeros(2)}, {theirs: list[str](), ours: list[str]()}
        for way, asked in ((theirs, alone[::2]), (ours, samples), (theirs, alone[1::2])):
            started, used = time.perf_counter(), time.process_time()
            said[way] += way(asked)
            spent[way] += time.perf_counter() - started, time.process_time() - used
        mine = dict(zip([sample.id for sample in samples], said[ours], strict=True))
        same = sum(mine[sample.id] == text for sample, text in zip(alone[::2] + alone[1::2], said[theirs], strict=True))
        (wall, cpu), (our_wall, our_cpu) = spent[theirs] / len(alone), spent[ours] / len(samples)
        ratios = wall / our_wall, cpu / our_cpu
        print(f"| {name} | {wall:.2f} | {our_wall:.2f} | {ratios[0]:.1f} | {ratios[1]:.1f} | {same} of {len(alone)} |", flush=True)
        failed += [f"answers: {name}"] * (max(ratios) < wanted or same < len(alone))
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--only", choices=["training", "answering"])
    parser.add_argument("--alone", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        train_alone(given.alone, given.steps)
        return
    started, failed = time.monotonic(), []
    if given.only != "answering":
        failed += training(given.steps)
    if given.only != "training":
        failed += answering(given.answers)
    print(f"\n{time.monotonic() - started:.0f} s")
    if failed:
        raise SystemExit("does not hold: " + "; ".join(failed))


if __name__ == "__main__":
    main()
