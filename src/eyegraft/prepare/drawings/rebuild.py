"""Rebuild the demo drawings and ``drawings.csv`` from npm tarballs.

A maintainer's tool: the library never imports it.  Fetch the packages that
``README.md`` lists (``npm pack NAME@VERSION``) into one folder, install
``pillow`` and ``resvg-py``, then run::

    python rebuild.py FOLDER_WITH_TARBALLS

The seven sets of drawings are joined on the emoji code point.  A concept
listed below that some set lacks is an error, so the outcome is always a full
grid of concepts by styles.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

SIZE = 128
QUALITY = 80
HERE = Path(__file__).resolve().parent

# Style name -> stem of its tarball as `npm pack` names it.
BITMAPS = {"fluent_3d": "lobehub-fluent-emoji-3d"}
ICONIFY = {
    "fluent_flat": "iconify-json-fluent-emoji-flat",
    "noto": "iconify-json-noto",
    "noto_v1": "iconify-json-noto-v1",
    "fxemoji": "iconify-json-fxemoji",
    "twemoji": "iconify-json-twemoji",
    "emojione_2": "iconify-json-emojione",
}
NAMES = "emojibase-data"

# Code points to keep.  `=word` gives the icon's name in the fxemoji set, which
# has no code points, where it is not simply the short name run together.
CONCEPTS = """
1f412 1f415=dogside 1f43a=wolfface 1f408=catside 1f405=tigerside
1f406=leopardside 1f40e 1f404 1f416=pigside 1f410 1f42a=dromedarycamel 1f418
1f401=mouseside 1f439=hampster 1f407=bunnyside 1f43f 1f43b 1f428
1f43c=pandaface 1f43e 1f414 1f423 1f426 1f427 1f54a=doveofpeace 1f438 1f40a
1f422 1f40d 1f409=dragonside 1f40b 1f42c 1f41f 1f419 1f41a 1f40c 1f41b 1f41c
1f41d 1f41e 1f577 1f578

1f490 1f338 1f339 1f33a 1f33b 1f337 1f331 1f332=evergreen 1f333 1f334 1f335
1f33e=earofrice 1f340 1f341 1f344 1f330=acorn

1f347 1f348 1f349 1f34a 1f34b 1f34c 1f34d 1f34e 1f350 1f351 1f352 1f353 1f345
1f346=aubergine 1f33d=earofmaize 1f336=chilipepper 1f35e 1f357 1f354 1f35f
1f355=sliceofpizza 1f372 1f371 1f359 1f35c 1f35d 1f360 1f363 1f364
1f365=fishcakeswirl 1f361 1f368 1f369 1f36a 1f382 1f370 1f36b 1f36c 1f36d 1f36e
1f36f

1f37c 2615 1f376=sakebottleandcup 1f377 1f378 1f37a 1f374=forkandknife
1f52a=hocho

1f30d=europeafricaglobe 1f5fa 1f30b 1f3d6=beachumbrella 1f3dd 1f3df
1f3e0=housebuilding 1f3e5 1f3e6 1f3ed 1f3ef 1f3f0=europeancastle
1f5fc=toykotower 1f5fd 26ea 26f2 26fa 1f309 1f3a1 1f3a2 1f488 1f3aa

1f682=steamlocomotive 1f685=highspeedtrainbulletnose 1f68c 1f691 1f692 1f693
1f695 1f697 1f69a 1f69c 1f3ce=racecar 1f3cd 1f6b2 26fd
1f6a8=policecarsrevolvinglight 1f6a6 2693 26f5 1f6a2 2708 1f681 1f6a1 1f680

231b=hourglass 231a 23f0 1f570=manltepiececlock 1f319 1f321 2600=sunrays
2b50 2601 1f32a 1f308 2602 2744 26c4=snowmanwithoutsnow 1f525
1f4a7 1f30a=wave

1f383 1f384 1f386 1f388 1f389 1f38f 1f390 1f380=bow 1f381=present 1f3c6 26bd
26be 1f3c0=basketballandhoop 1f3c8 1f3b3 26f3 1f3a3=fishingpoleandfish
1f3bf=skiandskiboot 1f3b1=billiards 1f52e 1f3ae 1f3b0 1f5bc=framewithpicture
1f3a8

1f453 1f576=darksunglasses 1f455=mansshirt 1f456 1f457 1f458 1f459 1f45c
1f392=schoolsatchel 1f45f=mensrunner 1f460=heels 1f462=boot 1f451 1f452 1f3a9
1f393 1f484 1f48d 1f48e=gem

1f4e3 1f514 1f3a4 1f3a7 1f4fb 1f3b7 1f3ba 1f3b8 1f3b9 1f3bb

1f4f1=cellphone 260e=blacktelephone 1f4e0 1f50b 1f50c 1f5a5 1f5a8
2328=wiredkeyboard 1f5b1=twobuttonmouse 1f4be=floppydisk2 1f4bf=opticaldisc
1f3a5 1f3ac 1f4fa 1f4f7 1f50d=leftmagnifyingglass 1f56f 1f4a1
1f526=electrictorch 1f3ee=izakayalantern

1f4d6 1f4da 1f4dc 1f4f0 1f4b0 1f4b5=banknotedollar 1f4b3 2709 1f4e6 1f4ee 270f
1f58c=lowerleftpaintbrush 1f58d=lowerleftcrayon 1f4bc 1f4c1=filefolder 1f4c5
1f4cc 1f4cf 2702=blackscissors 1f5c4 1f5d1

1f511 1f528 1f5e1=daggerknife 1f4a3 1f527 1f529 1f52c 1f52d 1f4e1 1f489 1f48a
1f6aa 1f6bd 1f6bf 1f6c1 1f5ff=moyai
"""


def read_tarball(folder: Path, stem: str) -> dict[str, bytes]:
    """Return the files of the one tarball called ``stem-VERSION.tgz``."""
    found = [p for p in folder.iterdir() if re.fullmatch(rf"{re.escape(stem)}-\d[\w.]*\.tgz", p.name)]
    if len(found) != 1:
        raise SystemExit(f"expected one {stem}-VERSION.tgz in {folder}, found {len(found)}")
    files: dict[str, bytes] = {}
    with tarfile.open(found[0]) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                files[member.name.partition("/")[2]] = stream.read()
    return files


def read_names(files: dict[str, bytes]) -> dict[str, dict[str, str]]:
    """Map each code point to its row of ``drawings.csv``."""
    levels = json.loads(files["meta/groups.json"])
    korean = {e["hexcode"]: e["label"] for e in json.loads(files["ko/data.json"])}
    rows: dict[str, dict[str, str]] = {}
    for entry in json.loads(files["en/data.json"]):
        if "group" in entry:
            code = entry["hexcode"].lower()
            rows[code] = {
                "codepoint": code,
                "name": entry["label"].lower().replace("’", "'"),
                "name_ko": korean[entry["hexcode"]],
                "group": levels["groups"][str(entry["group"])],
                "subgroup": levels["subgroups"][str(entry["subgroup"])],
            }
    return rows


def icon_svg(icons: dict[str, Any], name: str) -> str | None:
    """Return an Iconify icon as an SVG document, or None if there is none."""
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    box = [icon.get(k, icons.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )


def find_svg(icons: dict[str, Any], chars: dict[str, str], code: str, name: str, fx_name: str | None) -> str | None:
    """Find an icon by code point where the set lists these, else by name."""
    if chars:
        icon_name = chars.get(code) or chars.get(f"{code}-fe0f")
    else:
        icon_name = fx_name or re.sub(r"[^a-z0-9]+", "-", name.replace("'", "")).strip("-")
    return icon_svg(icons, icon_name) if icon_name else None


def main() -> None:
    """Write ``images/`` and ``drawings.csv`` next to this script."""
    import resvg_py
    from PIL import Image

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tarballs", type=Path, help="folder with the npm tarballs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    args = parser.parse_args()

    names = read_names(read_tarball(args.tarballs, NAMES))
    fx_names = {code: fx for code, _, fx in (token.partition("=") for token in CONCEPTS.split())}
    rows = [names[code] for code in sorted(fx_names, key=lambda c: int(c, 16))]
    images = args.out / "images"
    shutil.rmtree(images, ignore_errors=True)
    missing: list[str] = []
    for style, stem in {**BITMAPS, **ICONIFY}.items():
        files = read_tarball(args.tarballs, stem)
        icons, chars = (json.loads(files.get(f, b"{}")) for f in ("icons.json", "chars.json"))
        (images / style).mkdir(parents=True)
        for row in rows:
            code, name = row["codepoint"], row["name"]
            if style in BITMAPS:
                data = files.get(f"assets/{code}.webp") or files.get(f"assets/{code}-fe0f.webp")
            else:
                fx_name = (fx_names[code] or re.sub(r"[^a-z0-9]", "", name)) if style == "fxemoji" else None
                svg = find_svg(icons, chars, code, name, fx_name)
                data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)) if svg else None
            if not data:
                missing.append(f"{style} {code} {name}")
                continue
            picture = Image.open(io.BytesIO(data)).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            picture.save(images / style / f"{code}.webp", quality=QUALITY, method=4)
    if missing:
        raise SystemExit("no drawing for:\n" + "\n".join(missing))
    with (args.out / "drawings.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
