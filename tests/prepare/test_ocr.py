"""OCR fills a table's text column: with real engines, on pictures that the tests draw and on photographs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from eyegraft.config import Part
from eyegraft.errors import DataError, PartError, RecipeError
from eyegraft.prepare import manifest_of, prepare_data
from eyegraft.prepare.ocr import Config, engines, pictures
from eyegraft.prepare.ocr.engines import Line, Tesseract, choose, in_reading_order
from eyegraft.prepare.ocr.tables import read_table
from eyegraft.pretrained import cache_dir

HEADER = "local_image_path,label,text_info"
tesseract = pytest.mark.skipif(shutil.which("tesseract") is None, reason="needs the program tesseract")


def draw(path: Path, *lines: str, size: tuple[int, int] = (420, 160)) -> Path:
    image = Image.new("RGB", size, "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((20, 20 + 60 * number), line, fill="black", font=ImageFont.load_default(size=44))
    image.save(path)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def ads(tmp_path: Path) -> Path:
    """A folder with a table of four rows: to read, with a text, broken, without a picture."""
    draw(tmp_path / "sale.png", "BIG SALE", "TODAY")
    draw(tmp_path / "open.png", "NOW OPEN")
    (tmp_path / "broken.png").write_bytes((tmp_path / "sale.png").read_bytes()[:300])
    rows = [HEADER, "sale.png,True,", '"open.png",FALSE,"as it was, quoted"', "broken.png,0,", ",1,"]
    (tmp_path / "ads.csv").write_bytes("\r\n".join([*rows, ""]).encode())
    return tmp_path


@pytest.fixture
def fill(plain_recipe: Callable[..., dict[str, Any]]) -> Callable[..., Path]:
    """Run `prepare` as the command line does, on tables in a folder."""
    from eyegraft.composition import validate

    def run(folder: Path, **options: Any) -> Path:
        columns = {"table": "ads.csv", "image_column": "local_image_path", "text_column": "text_info", "languages": ["eng"]}
        prepare = {"kind": "ocr", "engine": "tesseract", **columns, **options}
        data = {"name": "ads", "base_dir": str(folder), "tables": {"train": "ads.csv"}}
        return prepare_data(validate(plain_recipe(prepare=prepare, data=data)))

    return run


def facts(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(manifest_of(output).read_text(encoding="utf-8"))
    return found


# ── the whole way ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@tesseract
def test_only_the_empty_texts_change(ads: Path, fill: Callable[..., Path]) -> None:
    before = {path.name: path.read_bytes() for path in ads.iterdir()}
    output = fill(ads)
    assert output == ads / "ads.ocr.csv"
    rows = [HEADER, "sale.png,True,BIG SALE TODAY", '"open.png",FALSE,"as it was, quoted"', "broken.png,0,", ",1,"]
    assert output.read_bytes() == "\r\n".join([*rows, ""]).encode()
    assert {name: (ads / name).read_bytes() for name in before} == before, "neither the table nor a picture is touched"
    assert {path.name for path in ads.iterdir()} - set(before) == {"ads.ocr.csv", "ads.ocr.csv.manifest.json"}


@tesseract
def test_manifest_says_what_became_of_every_row(ads: Path, fill: Callable[..., Path]) -> None:
    found = facts(fill(ads))
    parts = {name: found["counts"][name] for name in ("kept", "without picture", "read now", "read from the cache", "not read")}
    assert parts == {"kept": 1, "without picture": 1, "read now": 1, "read from the cache": 0, "not read": 1}
    assert found["counts"]["rows"] == sum(parts.values())
    assert [(item["row"], item["image"], item["reason"]) for item in found["quarantined"]] == [(3, "broken.png", "unreadable image")]
    assert found["engine"].startswith("tesseract-")
    assert list(found["files"]) == ["ads.ocr.csv"], "nothing else of the user's folder is hashed"


@tesseract
def test_second_run_reads_nothing_again(ads: Path, fill: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = fill(ads).read_bytes()
    shutil.copyfile(ads / "sale.png", ads / "again.png")
    (ads / "ads.csv").write_text(f"{HEADER}\nagain.png,1,\nsale.png,0,\n")
    monkeypatch.setattr(Tesseract, "read", lambda *_: pytest.fail("the engine was asked again"))
    output = fill(ads)
    assert output.read_text() == f"{HEADER}\nagain.png,1,BIG SALE TODAY\nsale.png,0,BIG SALE TODAY\n"
    assert output.read_bytes() != first
    assert (facts(output)["counts"]["read from the cache"], facts(output)["counts"]["read now"]) == (2, 0)


@tesseract
def test_torn_line_in_the_cache_costs_one_picture(ads: Path, fill: Callable[..., Path]) -> None:
    draw(ads / "third.png", "THIRD")
    (ads / "ads.csv").write_text(f"{HEADER}\nsale.png,1,\nopen.png,1,\nthird.png,1,\n")
    expected = fill(ads, workers=1).read_bytes()
    (memory,) = (cache_dir() / "ocr").iterdir()
    memory.write_bytes(memory.read_bytes()[:-30])
    output = fill(ads)
    assert output.read_bytes() == expected
    assert (facts(output)["counts"]["read from the cache"], facts(output)["counts"]["read now"]) == (2, 1)
    assert facts(fill(ads))["counts"]["read from the cache"] == 3, "what follows a torn line is remembered whole"


@tesseract
@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
def test_killed_run_goes_on(tmp_path: Path) -> None:
    count = 16
    for number in range(count):
        draw(tmp_path / f"{number}.png", f"PICTURE {number + 10}", size=(420, 90))
    (tmp_path / "ads.jsonl").write_text("".join(json.dumps({"image": f"{number}.png"}) + "\n" for number in range(count)))
    program = (
        "import sys; from pathlib import Path; from eyegraft.prepare.ocr import *\n"
        "config = Config(table='ads.jsonl', engine='tesseract', languages=['eng'], workers=1)\n"
        "facts, = prepare(config, Path(sys.argv[1]))['files'].values(); print(facts['counts']['read from the cache'])"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    running = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while sum(path.read_bytes().count(b"\n") for path in (cache_dir() / "ocr").glob("*")) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "it was killed half-way"
    assert not (tmp_path / "ads.ocr.jsonl").exists()
    resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 3 <= int(resumed.stdout) < count
    texts = [json.loads(line)["text"] for line in (tmp_path / "ads.ocr.jsonl").read_text().splitlines()]
    assert texts == [f"PICTURE {number + 10}" for number in range(count)]


@tesseract
def test_confidence_is_chosen_without_reading_again(ads: Path, fill: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fill(ads)
    monkeypatch.setattr(Tesseract, "read", lambda *_: pytest.fail("the engine was asked again"))
    output = fill(ads, min_confidence=1.0)
    assert output.read_text().splitlines()[1] == "sale.png,True,"
    assert facts(output)["counts"]["without text"] == 1


@tesseract
def test_overwrite_replaces_texts_but_not_by_nothing(ads: Path, fill: Callable[..., Path]) -> None:
    (ads / "ads.csv").write_text(f"{HEADER}\nopen.png,1,old\nbroken.png,1,typed by hand\n")
    assert fill(ads, overwrite=True).read_text() == f"{HEADER}\nopen.png,1,NOW OPEN\nbroken.png,1,typed by hand\n"


@tesseract
def test_an_output_that_was_corrected_by_hand_stays(ads: Path, fill: Callable[..., Path]) -> None:
    output = fill(ads)
    mine = output.read_text().replace("BIG SALE", "HUGE SALE")
    output.write_text(mine)
    with pytest.raises(DataError, match="not as `eyegraft prepare` left it"):
        fill(ads)
    assert output.read_text() == mine
    assert fill(ads, output="other.csv") == ads / "other.csv"


@tesseract
def test_all_tables_of_the_recipe(ads: Path, fill: Callable[..., Path]) -> None:
    (ads / "test.tsv").write_text("local_image_path\tn\nopen.png\t1\n")
    assert fill(ads, table=None, tables={"train": "ads.csv", "test": "test.tsv"}) == ads
    assert (ads / "ads.ocr.csv").exists()
    assert (ads / "test.ocr.tsv").read_text() == "local_image_path\tn\ttext_info\nopen.png\t1\tNOW OPEN\n"


def test_refuses_to_write_over_its_own_table(ads: Path, fill: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="is the table itself"):
        fill(ads, output="./ads.csv")


@tesseract
def test_a_wrong_folder_stops_instead_of_leaving_the_column_empty(ads: Path, fill: Callable[..., Path]) -> None:
    (ads / "ads.csv").write_text(f"{HEADER}\nimages/a.png,1,\nimages/b.png,0,\n")
    with pytest.raises(DataError, match=r"none of 2 pictures can be read(.|\n)*data\.base_dir"):
        fill(ads)
    assert not (ads / "ads.ocr.csv").exists()


def test_needs_a_table_and_a_column(tmp_path: Path, fill: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"prepare\.table, or data\.tables"):
        fill(tmp_path, table=None)
    with pytest.raises(RecipeError, match=r"prepare\.text_column"):
        fill(tmp_path, text_column=None)
    (tmp_path / "adds.csv").touch()
    with pytest.raises(DataError, match=r"did you mean 'adds\.csv'"):
        fill(tmp_path)


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Recorder:
    """An engine that says how large a picture it was shown, and which colour its corner has."""

    name = key = "recorder"

    def read(self, image: Image.Image) -> list[Line]:
        return [Line(((f"{image.mode} {image.width}x{image.height} {image.getpixel((0, 0))}", 1.0),), (0, 0, 1, 1))]


def shown(path: Path, max_pixels: int = 10**9) -> str:
    reading = pictures.read_pictures([path], Recorder(), max_pixels=max_pixels, workers=1)[path]
    return reading.text(0) or f"{reading.reason}: {reading.detail}"


def test_pictures_come_upright_on_white_and_not_too_large(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (40, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("I;16", (40, 20), 40000).save(tmp_path / "deep.png")
    Image.new("L", (9000, 900)).save(tmp_path / "long.png")
    assert shown(tmp_path / "turned.jpg") == "RGB 20x40 (0, 0, 0)"
    assert shown(tmp_path / "clear.png") == "RGB 40x20 (255, 255, 255)"
    assert shown(tmp_path / "deep.png") == "RGB 40x20 (156, 156, 156)"
    assert shown(tmp_path / "long.png") == "RGB 4096x410 (0, 0, 0)"


def test_bad_pictures_have_a_reason(tmp_path: Path) -> None:
    Image.new("L", (300, 200)).save(tmp_path / "large.png")
    (tmp_path / "words.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    Image.new("F", (30, 20)).save(tmp_path / "floats.tif")
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert shown(tmp_path / "large.png", max_pixels=50_000).startswith("image too large: 300 x 200 = 60,000 pixels")
    assert shown(tmp_path / "words.png") == "unreadable image: the bytes are no picture"
    assert shown(tmp_path / "script.eps") == "unreadable image: the bytes are no picture"
    assert shown(tmp_path / "floats.tif").startswith("unreadable image: ValueError: pixels of mode F")
    assert shown(tmp_path / "folder.png") == "missing file: not a regular file"
    assert shown(tmp_path / "absent.png") == "missing file: no such file"
    assert list((cache_dir() / "ocr").glob("*")) == [] or not any(path.read_bytes() for path in (cache_dir() / "ocr").iterdir())


def test_engine_that_fails_on_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [draw(tmp_path / f"{number}.png", str(number), size=(100 + number, 90)) for number in range(3)]

    def read(self: Recorder, image: Image.Image) -> list[Line]:
        if image.width == 101:
            raise OSError("it crashed")
        return [Line((("fine", 1.0),), (0, 0, 1, 1))]

    monkeypatch.setattr(Recorder, "read", read)
    for cached in (False, True):
        found = pictures.read_pictures(paths, Recorder(), max_pixels=10**9, workers=2)
        assert [(item.text(0), item.reason, item.cached) for item in found.values()] == [
            ("fine", "", cached),
            ("", "OCR failed", False),  # never remembered: the next run tries it again
            ("fine", "", cached),
        ]


def test_cache_that_cannot_be_written_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EYEGRAFT_CACHE", str(tmp_path / "file"))
    assert shown(draw(tmp_path / "a.png", "A")).startswith("RGB 420x160")
    assert "EYEGRAFT_CACHE" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="file names of both spellings")
def test_korean_names_in_either_spelling(tmp_path: Path, fill: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import unicodedata

    monkeypatch.setattr("eyegraft.prepare.ocr.choose", lambda *_: Recorder())
    draw(tmp_path / unicodedata.normalize("NFD", "광고.png"), "AD")
    (tmp_path / "ads.csv").write_bytes(f"{HEADER}\n{unicodedata.normalize('NFC', '광고.png')},1,\n".encode())
    assert "RGB 420x160" in fill(tmp_path).read_text(encoding="utf-8")


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.csv", "image,text\na.png,\nb.png,x\n", 'image,text\na.png,"1 ""2"", 3"\nb.png,x\n'),
        ("a.csv", "text,image\r\n,a.png\r\nx,b.png", 'text,image\r\n"1 ""2"", 3",a.png\r\nx,b.png'),
        (
            "a.csv",
            '\ufeffimage,"n"\n\n"a.png","0,5"\n"b ""1"".png",007',
            '\ufeffimage,"n",text\n\n"a.png","0,5","1 ""2"", 3"\n"b ""1"".png",007,',
        ),
        ("a.csv", 'image,n,text\na.png,"two\nlines",""\nb.png,,""\n', 'image,n,text\na.png,"two\nlines","1 ""2"", 3"\nb.png,,""\n'),
        ("a.tsv", "image\ttext\na.png\t\nb.png\t\n", 'image\ttext\na.png\t"1 ""2"", 3"\nb.png\t\n'),
        (
            "a.jsonl",
            '{"n": 1.50, "image":"a.png"}\r\n{"image":"b.png" }',
            '{"n": 1.5, "image": "a.png", "text": "1 \\"2\\", 3"}\r\n{"image":"b.png" }',
        ),
    ],
)
def test_all_else_stays_as_it_was_written(name: str, before: str, after: str) -> None:
    table = read_table(Path(name), before.encode(), "image", "text")
    assert table.images[0] == "a.png"
    assert table.filled({0: '1 "2", 3'}) == after
    assert table.texts[0] == ""
    again = read_table(Path(name), after.encode(), "image", "text")
    assert again.texts[0] == '1 "2", 3'
    assert again.filled({}) == after


def test_quotes_are_read_as_the_standard_library_reads_them() -> None:
    import csv
    import io
    from random import Random

    draws = Random(0)
    for _ in range(300):
        cells = [["".join(draws.choices('ab,"\n\r é', k=draws.randrange(6))) for _ in range(3)] for _ in range(4)]
        stream = io.StringIO(newline="")
        quoting, end = draws.choice([(csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\n")])
        csv.writer(stream, lineterminator=end, quoting=quoting).writerows([["image", "text", "n"], *cells])
        table = read_table(Path("a.csv"), stream.getvalue().encode(), "image", "text")
        assert table.images == [row[0] for row in cells]
        filled = list(csv.reader(io.StringIO(table.filled({2: 'new, "quoted"\n'}), newline=""), strict=True))
        assert filled[1:] == [*cells[:2], [cells[2][0], 'new, "quoted"\n', cells[2][2]], *cells[3:]]


def test_cp949_is_read_and_utf8_is_written(tmp_path: Path, fill: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eyegraft.prepare.ocr.choose", lambda *_: Recorder())
    draw(tmp_path / "a.png", "A")
    (tmp_path / "ads.csv").write_bytes("local_image_path,광고주,text_info\na.png,서울우유,\n".encode("cp949"))
    assert fill(tmp_path).read_text(encoding="utf-8").startswith("local_image_path,광고주,text_info\na.png,서울우유,")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"picture,text\n", "no column 'image'"),
        ("a.csv", b"", "no column 'image'"),
        ("a.csv", b"image,image\n", "stands twice"),
        ("a.csv", b'image,n\n"a\nb.png",1\nc.png\n', "line 4: 1 cells under 2"),
        ("a.csv", b'image,n\na.png,"open\nb.png,1\n', "line 2: a quote"),
        ("a.csv", b'image,n\n"a.png"x,1\n', "line 2: a quote"),
        ("a.csv", "image\n".encode("utf-16"), "UTF-16"),
        ("a.csv", b"image\n\xff\xff\n", "neither UTF-8 nor CP949"),
        ("a.jsonl", b'{"image": "a.png"}\n[]\n', "line 2"),
        ("a.jsonl", b'{"image": "a.png"\n', "line 1"),
        ("a.jsonl", b'{"image": 3}\n', "image is 3"),
        ("a.parquet", b"PAR1", "fills no .parquet tables"),
    ],
)
def test_bad_tables(name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(Path(name), content, "image", "text")


# ── engines ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_reading_order() -> None:
    boxes = {"a": (10, 12, 50, 30), "b": (60, 8, 99, 28), "c": (200, 10, 250, 26), "d": (5, 40, 90, 60), "e": (5, 62, 90, 80)}
    lines = [Line(((word, 1.0),), box) for word, box in boxes.items()]
    for order in (lines, lines[::-1], lines[2:] + lines[:2]):
        assert "".join(line.words[0][0] for line in in_reading_order(order)) == "abcde"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that Tesseract has these languages (None: it is not there), and that RapidOCR is there or not."""

    def set_up(languages: set[str] | None, rapidocr: bool) -> None:
        found = None if languages is None else ("/usr/bin/tesseract", "5.3.0", frozenset(languages))
        monkeypatch.setattr(engines, "_tesseract", lambda: found)
        monkeypatch.setattr(engines, "find_spec", lambda name: object() if rapidocr else None)
        monkeypatch.setattr(engines, "version", lambda name: "3.10.0")

    return set_up


@pytest.mark.parametrize(
    ("wanted", "languages", "has", "rapidocr", "chosen"),
    [
        ("auto", ["kor", "eng"], {"kor", "eng"}, True, "tesseract-5.3.0-kor+eng-psm11"),
        ("auto", ["eng"], {"kor", "eng"}, True, "rapidocr-3.10.0"),
        ("auto", ["eng"], {"eng"}, False, "tesseract-5.3.0-eng-psm11"),
        ("auto", ["kor", "eng"], {"eng"}, True, "rapidocr-3.10.0"),
        ("tesseract", ["eng"], {"eng"}, True, "tesseract-5.3.0-eng-psm11"),
        ("rapidocr", ["eng"], {"eng"}, True, "rapidocr-3.10.0"),
    ],
)
def test_which_engine(
    installed: Callable[..., None], wanted: Any, languages: list[str], has: set[str], rapidocr: bool, chosen: str
) -> None:
    installed(has, rapidocr)
    assert choose(wanted, languages).key == chosen


def test_korean_from_rapidocr_is_warned_of(installed: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    installed({"eng"}, True)
    choose("auto", ["kor", "eng"])
    assert "not kor" in caplog.text
    assert "tesseract-ocr-kor" in caplog.text
    caplog.clear()
    choose("auto", ["eng"])
    assert not caplog.text


@pytest.mark.parametrize(
    ("wanted", "languages", "has", "fix"),
    [
        ("auto", ["kor"], None, r"eyegraft\[ocr\](.|\n)*apt-get install tesseract-ocr tesseract-ocr-kor"),
        ("auto", ["kor"], {"eng"}, "tesseract-ocr-kor"),
        ("tesseract", ["chi_sim"], {"eng", "kor"}, r"no data for chi_sim(.|\n)*eng, kor(.|\n)*tesseract-ocr-chi-sim"),
        ("tesseract", ["eng"], None, "apt-get install tesseract-ocr"),
        ("rapidocr", ["eng"], {"eng"}, r"pip install 'eyegraft\[ocr\]'"),
    ],
)
def test_no_engine(installed: Callable[..., None], wanted: Any, languages: list[str], has: set[str] | None, fix: str) -> None:
    installed(has, False)
    with pytest.raises(PartError, match=fix):
        choose(wanted, languages)


def test_languages_are_words() -> None:
    with pytest.raises(ValueError, match="languages"):
        Config(table="a.csv", languages=("--tessdata-dir=/tmp",))


@tesseract
def test_tesseract_on_nothing_to_read(tmp_path: Path) -> None:
    engine = choose("tesseract", ["eng"])
    for size in ((1, 1), (3, 400), (200, 200)):
        assert engine.read(Image.new("RGB", size, "white")) == []


def test_rapidocr_reads_lines_in_order(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    paths = [draw(tmp_path / "a.png", "Summer SALE", "50% off"), draw(tmp_path / "b.png")]
    found = pictures.read_pictures(paths, choose("rapidocr", ["eng"]), max_pixels=10**9, workers=2)
    assert [found[path].text(0.5) for path in paths] == ["Summer SALE 50% off", ""]
    assert not any(reading.reason for reading in found.values())


@pytest.fixture(scope="module")
def photographs() -> Path:
    place = os.environ.get("EYEGRAFT_TEST_DATA")
    if not place or not (Path(place) / "ocr").is_dir():
        pytest.skip("EYEGRAFT_TEST_DATA names no folder")
    return Path(place) / "ocr"


@tesseract
def test_tesseract_reads_a_korean_sign(photographs: Path) -> None:
    engine = choose("auto", ["kor", "eng"])
    assert engine.name == "tesseract"
    path = photographs / "easy_korean.png"
    text = pictures.read_pictures([path], engine, max_pixels=10**9, workers=1)[path].text(0.5)
    assert "Seoul" in text
    assert "Pyeongyang" in text
    assert any("가" <= letter <= "힣" for letter in text), text


def test_rapidocr_reads_a_poster(photographs: Path) -> None:
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    path = photographs / "easy_english.png"
    text = pictures.read_pictures([path], choose("rapidocr", ["eng"]), max_pixels=10**9, workers=1)[path].text(0.5)
    assert text.startswith("Reduce your risk of coronavirus infection: Clean hands with soap and water or alcohol-based hand rub")
    assert text.endswith("World Health Organization")


# ── the contract with `prepare` ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_recipe_brings_its_tables_and_columns() -> None:
    from eyegraft.composition import compose, to_plain, validate

    typed = ["recipe=demo", "prepare=ocr", "data.columns.text=words"]
    options = validate(to_plain(compose(typed))).prepare
    assert options is not None
    config = Config.model_validate(Part.model_validate(options).options)
    assert config.tables["train"] == "train.jsonl"
    assert (config.table, config.image_column, config.text_column) == (None, "image", "words")
    cut = ["~data.tables", "data.split={table: ads.csv, fractions: {train: 1.0}}"]
    assert validate(to_plain(compose([*typed, *cut]))).prepare == Part.model_validate(
        {**options.model_dump(), "table": "ads.csv", "tables": {}}
    )
