"""Four-choice questions about cases, in the form of WeatherQA's test: which area, which concern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eyegraft.prepare.weather_fields.cases import chance
from eyegraft.prepare.weather_fields.facts import CONCERNS

AREA = "Which area is affected?"
CONCERN = "What is the main concern?"
NUM_CHOICES = 4
TOO_FEW = "question: fewer than three other cases with another area"


@dataclass(frozen=True)
class Question:
    """`kind`: area or concern; `image`: of the map that the answer was read from."""

    kind: str
    text: str
    choices: tuple[str, ...]
    answer: str

    @property
    def letter(self) -> str:
        return "ABCD"[self.choices.index(self.answer)]


def questions_of(record: dict[str, Any], others: Sequence[dict[str, Any]], seed: int) -> list[Question]:
    """Both questions about a case. Wrong areas are those of other cases of its split that share no state with it; an area stands once."""
    wrong: list[str] = []
    own = set(record["concern"]["area"])
    taken = set(own)
    for other in sorted(others, key=lambda other: chance(seed, "area", record["case_id"], other["case_id"])):
        if not taken & set(other["concern"]["area"]):
            wrong.append(other["area_text"])
            taken |= set(other["concern"]["area"])
    found = []
    if len(wrong) >= NUM_CHOICES - 1:
        found.append(_mixed("area", AREA, record["area_text"], wrong[: NUM_CHOICES - 1], record, seed))
    concern = record["concern"]["concern"]
    rest = sorted((name for name in CONCERNS if name != concern), key=lambda name: chance(seed, "concern", record["case_id"], name))
    found.append(_mixed("concern", CONCERN, concern, rest[: NUM_CHOICES - 1], record, seed))
    return found


def _mixed(kind: str, text: str, answer: str, wrong: Sequence[str], record: dict[str, Any], seed: int) -> Question:
    order = sorted((answer, *wrong), key=lambda choice: chance(seed, kind, record["case_id"], choice, "place"))
    return Question(kind, text, tuple(order), answer)


def test_file(records: Sequence[dict[str, Any]], asked: dict[str, list[Question]]) -> dict[str, Any]:
    """The questions in the layout of WeatherQA's test file; `concern_choices` is ours, for its concerns are not those of a watch."""
    samples = []
    for record in records:
        by_kind = {question.kind: question for question in asked[record["case_id"]]}
        if "area" not in by_kind:
            continue
        samples.append(
            {
                "md_id": record["case_id"],
                "para_paths": [element["image_rel_path"] for element in record["elements"]],
                "time": record["time"],
                "choices": list(by_kind["area"].choices),
                "area_ans": by_kind["area"].letter,
                "concern_choices": list(by_kind["concern"].choices),
                "concern_ans": by_kind["concern"].letter,
            }
        )
    return {
        "sys_prompt": "The maps show weather over one region at one hour. Areas and concerns follow from the fields by rule.",
        "prompt_template": "Which area is affected?\nA. {choice_a}\nB. {choice_b}\nC. {choice_c}\nD. {choice_d}",
        "para_description": {element["type_name"]: element["subject"] for record in records for element in record["elements"]},
        "samples": samples,
    }
