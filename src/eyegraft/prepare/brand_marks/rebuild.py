"""Rebuild the brand marks and ``brand_marks.csv`` from npm tarballs.

A maintainer's tool: the library never imports it.  Fetch the packages that
``README.md`` lists (``npm pack NAME@VERSION``) into one folder, install
``pillow``, ``resvg-py`` and ``rapidocr`` with ``onnxruntime``, then run::

    python rebuild.py FOLDER_WITH_TARBALLS

Both classes go through one pipeline: the same renderer, ground, size, share of
the canvas, shift and codec.  Everything that looks random is a hash of a name.
"""

from __future__ import annotations

import argparse
import colorsys
import csv
import hashlib
import io
import json
import logging
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
SIZE = 128
LARGE = 512  # side of the canvas that is read and then made small
QUALITY = 80
ASPECTS = (0.5, 0.8, 0.95, 1.05, 1.25, 1.5, 2.0, 2.5, 4.0)  # edges of the bins of width / height in which the classes are matched
WIDE = 1.25  # from here on marks are likely to hold words: wide pictures are preferred, and among wide marks those with words
WIDE_SHARE = 0.4  # at most, of the other drawings of a style in a split: more would leave only pencils and snakes
MARKS_PER_BRAND = 2
DRAWINGS_PER_WORD = 2  # of one style
MIN_SCORE = 0.8  # of the OCR
# No line stands on its head, and the canvas is not enlarged.
READER = {"Global.use_cls": False, "Det.limit_side_len": LARGE, "EngineConfig.onnxruntime.intra_op_num_threads": 1}

POSITIVE = "logos"
SHARES = {"train": 0.46, "val": 0.155, "test": 0.235, "test_new_styles": 0.15}  # of the brands, and of the things
NEGATIVES = {  # split -> style -> number of pictures: one mix in train, val and test, other styles in the last
    "train": {"noto": 72, "fluent_emoji_flat": 60, "flat_color_icons": 42, "maki": 36, "fluent_color": 30},
    "val": {"noto": 24, "fluent_emoji_flat": 20, "flat_color_icons": 14, "maki": 12, "fluent_color": 10},
    "test": {"noto": 36, "fluent_emoji_flat": 30, "flat_color_icons": 21, "maki": 18, "fluent_color": 15},
    "test_new_styles": {"marketeq": 24, "temaki": 22, "healthicons": 20, "circle_flags": 14},
}
_PEOPLE = r"^(wo)?m[ae]n\b|^(person|people|couple|family|kiss|boy|girl|hand)"
LEFT_OUT = {  # names of marks, lettering of brands, variants of one drawing, and pictures of people in all their variants
    "noto": rf"tone|flag|hugging-face|^non?-|\b(light|medium|dark)\b|{_PEOPLE}",
    "fluent_emoji_flat": rf"flag|hugging-face|paperclip|^non?-|\b(light|medium|dark)\b|{_PEOPLE}",
    "flat_color_icons": r"logo|android|bbc|debian|dribbble|google|icons8|ipad|iphone|kindle|linux|nook|reddit|steam|stumble|vlc"
    r"|wikipedia|copyleft|usb",
    "maki": r"stroked",
    "fluent_color": r"copilot|teams|office|microsoft|linkedin|xbox|skype|agents",
    "temaki": r"logo",
    "marketeq": r"logo|touchid",
    "healthicons": r"logo|outline|negative|24px|dhis2|^(baby|boy|girl|man|woman|old|young)"
    r"|anus|breast|genital|penis|vagina|sex|condom|rectum",
    "circle_flags": r"^(?!..$)|^(yi|zh)$",  # countries alone: two letters
    "logos": r"copyleft|freedomdefined|-dark$|-clean$|^kiro$",
}

# Marks of one house under several names. Each line is one group; so are names with one first word.
FAMILIES = """
adobe behance magento xd typekit
airbnb lottie
akka lightbend scala
angular angularjs
anthropic claude
antigravity google android angular chrome firebase flutter dart go gopher tensorflow youtube gmail waze admob doubleclick \
dialogflow lighthouse recaptcha polymer fuchsia wearos material notebook kaggle looker kubernetes v8 web puppeteer fabric jax \
apigee pwa amp lit
apache airflow cassandra kafka hadoop hbase impala mesos spark tomcat maven lucene solr hibernate cordova phonegap groovy \
openwhisk storm flink presto subversion derby netbeans
apollostack apollo graphql
apple ios macos macosx safari swift webkit xcode
arm mbed
atlassian bamboo bitbucket confluence jira trello statuspage opsgenie sourcetree hipchat crucible stride loom
auth0 okta
automattic wordpress woocommerce tumblr gravatar
aws amazon cloud9
azure microsoft typescript visual skype linkedin github bing yammer dotnet net c fsharp xamarin npm windows internetexplorer bot \
codepush nuget appcenter playwright powershell
backbone marionette
bem
bitcoin
bower
broadcom vmware
brave
browserstack percy
cloudflare unjs bunny
codeship cloudbees jenkins
codium qodo
cross crossbrowsertesting
css html html5 css3 w3c svg webplatform semantic
databricks delta mlflow tecton
datadog
deepseek
delicious
docker compose kitematic tutum
dojo
drone
drizzle
eclipse
effect effector
elasticsearch elastic kibana logstash beats
elm
ember glimmerjs
envoy envoyer envoyproxy
ethereum ethers
facebook meta messenger instagram whatsapp workplace threads react flow jest oculus parse hhvm reason reasonml relay yarn pytorch \
caffe2 nuclide recoil immutable graphcool docusaurus llama flux hack infer lexical stylex create watchman presto
font
gitlab
gitter
gnu gnupg emacs
grok x twitter bootstrap
groq
hashicorp terraform vault consul nomad packer vagrant waypoint atlas serf
heroku ruby rails rubygems
hugging huggy gradio
ibm bluemix
influxdata influxdb
intel
jetbrains intellij webstorm pycharm phpstorm datagrip rubymine goland appcode dataspell youtrack teamcity kotlin ktor rider clion \
resharper
jquery
jruby
karma
laravel lumen forge envoyer
launchdarkly
mastercard maestro cirrus
matter mattermost
mailchimp mandrill
mapbox
mdn mozilla firefox rust
mesosphere dcos marathon
micro micron
mongodb mongolab mlab
mysql mariadb
nextjs vercel now zeit turbopack turborepo swr v0 hyper
nodejs node nodemon nodewebkit
nativescript
now
nuxt vue vuetifyjs vueuse vitest vite vitejs viteplus vitess rolldown rollupjs oxc pinia volar unocss
openai codex
openshift redhat ansible quarkus wildfly fedora ceph centos coreos hibernate kallithea
opensearch
oracle java
paypal
pivotal spring cloudfoundry
postgresql
python pypi
promises q
r rstudio
reactivex rxdb
redux
redis heroku-redis
remix
salesforce slack mulesoft tableau
sap
sass node-sass
section sectionio
semaphore semaphoreci
serverless serveless
shortcut
sketch sketchapp
socket io
solid solidjs
sonarcloud sonarlint sonarqube
spotify
stately xstate
sourcegraph
spree
svelte
taiga
tastejs todomvc
tailwindcss headlessui
testing
twilio sendgrid segment authy
ubuntu
unreal unrealengine
visa visaelectron
weave weaviate
webdriverio selenium
x
yahoo flickr
zend
zoom
"""

# Words for one thing, or for things that a set draws nearly alike. Names that share a word, or a line here, are one group.
THINGS = """
airplane airport aeroplane plane airfield departure arrival
aries taurus gemini cancer leo virgo libra scorpio scorpius sagittarius capricorn aquarius pisces ophiuchus atom om david dharma yin \
latin orthodox menorah peace star place worship religious christian jewish muslim buddhism hinduist sikh shinto
arrow previous next left right up down left2 right2 up2 down2 collapse expand undo redo direction chevron
automobile car taxi vehicle
bell notification
bicycle bike biking cycling cyclist scooter motorcycle
book notebook ledger library
bubble speech balloon chat comment message thought
bus trolleybus minibus
calendar date event
camera photo image picture gallery frame
cat kitten
chart graph statistic diagram data
clock oclock thirty alarm watch stopwatch timer hourglass
cog gear setting
computer laptop desktop pc
cup glass mug beverage tea coffee cafe drink beer bar wine
dollar euro yen pound money currency bank banknote
email mail envelope letter inbox mailbox post
face smile emoji
film movie cinema clapper video
flower blossom hibiscus rose tulip florist
folder file document page paper clipboard
glasses eyewear sunglasses goggles optician
health hospital medical doctor ambulance
home house building hut
image picture
key lock locked unlock keyhole padlock
knife dagger sword cutlery fork
magnifying search
mobile phone telephone smartphone cell call
monkey gorilla orangutan
mouse rat hamster
music musical note
pen pencil edit crayon paintbrush brush
people person man woman user group businessman businesswoman family
plus minus multiply divide add remove
railway rail train tram metro locomotive monorail subway
ship boat ferry harbor sailboat canoe
shoe boot sneaker sandal
shop store cart
soccer football
television tv
tree evergreen park garden
truck lorry delivery
trash wastebasket bin basket
"""
PASSED_OVER = """
a an and at by for from in no of off on or out over the to under up with without down left right side upper lower large medium small big
new old filled outline alt black white red blue green yellow orange brown purple pink grey gray color colored
"""  # words that tell nothing about the thing

LICENCES = {style: style.replace("_", "-") for style in (POSITIVE, *(style for styles in NEGATIVES.values() for style in styles))}


class Picture(NamedTuple):
    """One picture on the large canvas, not yet written."""

    style: str
    name: str
    group: str
    aspect: float
    canvas: Any
    text: str | None = None  # None until it is read


def fraction(text: str) -> float:
    """A number in [0, 1) that is a pure function of the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def ink(key: str) -> str:
    """The colour of an icon that leaves it to its user: black for half of them, else any hue."""
    if fraction("black " + key) < 0.5:
        return "#000000"
    colour = colorsys.hls_to_rgb(fraction("hue " + key), 0.3 + 0.25 * fraction("light " + key), 0.5 + 0.5 * fraction("pure " + key))
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def read_icons(folder: Path, style: str) -> dict[str, Any]:
    """The icons of the one tarball of a style."""
    stem = f"iconify-json-{LICENCES[style]}"
    found = [path for path in folder.iterdir() if re.fullmatch(rf"{re.escape(stem)}-\d[\w.]*\.tgz", path.name)]
    if len(found) != 1:
        raise SystemExit(f"expected one {stem}-VERSION.tgz in {folder}, found {len(found)}")
    with tarfile.open(found[0]) as tar:
        stream = tar.extractfile("package/icons.json")
        assert stream is not None
        icons: dict[str, Any] = json.load(stream)
    return icons


def svg(icons: dict[str, Any], name: str, colour: str) -> tuple[str, float]:
    """An icon as an SVG document, and its width / height."""
    icon = icons["icons"][name]
    left, top, width, height = (
        icon.get(key, icons.get(key, base)) for key, base in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{head} color="{colour}" viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>', width / height


def ink_of(icons: dict[str, Any], style: str, name: str, longest: int) -> tuple[Any, Any] | None:
    """The icon cut to what is not white, and the mask of that; None where nothing shows. Its longer side is drawn `longest` px long."""
    import resvg_py
    from PIL import Image, ImageChops

    document, ratio = svg(icons, name, ink(f"{style}/{name}"))
    width, height = (longest, max(1, round(longest / ratio))) if ratio >= 1 else (max(1, round(longest * ratio)), longest)
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=document, width=width, height=height)))).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    difference = ImageChops.difference(flat, Image.new("RGB", flat.size, "white")).convert("L").point(lambda value: 255 * (value > 12))
    box = difference.getbbox()
    return None if box is None else (flat.crop(box), difference.crop(box))


def rough_aspect(icons: dict[str, Any], style: str, name: str) -> float:
    """Width / height of what shows, from a small rendering; 0 where nothing does."""
    found = ink_of(icons, style, name, 160)
    return found[0].width / found[0].height if found else 0.0


def draw(icons: dict[str, Any], style: str, name: str, group: str) -> Picture | None:
    """The icon on a white canvas at a hashed size and place; None where nearly nothing shows or its shape is in no bin."""
    from PIL import Image

    key = f"{style}/{name}"
    found = ink_of(icons, style, name, 2 * LARGE)
    if found is None:
        return None
    flat, inked = found
    aspect = inked.width / inked.height
    if inked.histogram()[255] < 0.06 * inked.width * inked.height or not ASPECTS[0] <= aspect <= ASPECTS[-1]:
        return None
    side = (0.6 + 0.32 * fraction("size " + key)) * LARGE
    new = tuple(max(1, round(length * side / max(inked.size))) for length in inked.size)
    canvas = Image.new("RGB", (LARGE, LARGE), "white")
    place = tuple(round((LARGE - length) * (0.5 + 0.6 * (fraction(f"{axis} {key}") - 0.5))) for axis, length in zip("xy", new, strict=True))
    canvas.paste(flat.resize(new, Image.Resampling.LANCZOS), place)
    return Picture(style, name, group, aspect, canvas)


def joined(lines: Iterable[Iterable[str]]) -> dict[str, str]:
    """Word -> the group it belongs to, lines that share a word made one."""
    parent: dict[str, str] = {}

    def root(word: str) -> str:
        parent.setdefault(word, word)
        return word if parent[word] == word else root(parent[word])

    for line in lines:
        head, *rest = line
        for word in (head, *rest):
            parent[root(word)] = root(head)
    return {word: root(word) for word in parent}


def joined_lines(text: str) -> dict[str, str]:
    return joined(line.split() for line in text.strip().splitlines())


def by_hash(names: Iterable[str], style: str) -> list[str]:
    return sorted(names, key=lambda name: fraction(f"order {style}/{name}"))


def words_of(style: str, name: str, same: dict[str, str]) -> list[str]:
    """The words of a name that tell what is shown, in the singular, one for all that mean the same; the whole name of a flag."""
    if style == "circle_flags":
        return [f"flag-{name}"]
    passed_over = set(PASSED_OVER.split())
    parts = [part for part in name.split("-") if part not in passed_over and len(part) > 1 and not part.isdigit()] or [name.split("-")[-1]]
    single = [part if part in same or len(part) < 4 else re.sub(r"(?<!s)s$", "", part) for part in parts]
    return sorted({same.get(word, word) for word in single})


def split_of(group: str) -> str:
    place, edge = fraction("split " + group), 0.0
    for split, share in SHARES.items():
        edge += share
        if place < edge:
            return split
    return split


def negatives(folder: Path, brands: set[str]) -> Iterator[tuple[str, Picture]]:
    """Other drawings. No word of a name crosses splits, wide ones come first up to their share, and none shares a word with a brand."""
    same = joined_lines(THINGS)
    chosen: list[tuple[str, Picture, list[str]]] = []
    for style in {style: None for styles in NEGATIVES.values() for style in styles}:
        icons, seen = read_icons(folder, style), Counter[str]()
        by_length = sorted(icons["icons"], key=lambda name: (len(name), name))
        newest = {re.sub(r"-\d+$", "", name): name for name in by_length}  # one size of each
        usable: dict[str, list[tuple[str, list[str]]]] = {split: [] for split, styles in NEGATIVES.items() if style in styles}
        for name in by_hash((name for name in newest.values() if not re.search(LEFT_OUT[style], name)), style):
            words = words_of(style, name, same)
            splits = {"test_new_styles"} if style == "circle_flags" else {split_of(word) for word in words}
            if len(splits) == 1 and splits <= set(usable) and not brands & {*words, name, *name.split("-")}:
                usable[splits.pop()].append((name, words))
        for split, candidates in usable.items():
            count = left = NEGATIVES[split][style]
            wide = {name for name, _ in candidates if rough_aspect(icons, style, name) >= WIDE}
            kept_wide = 0
            for name, words in sorted(candidates, key=lambda item: item[0] not in wide):
                if not left or any(seen[word] == DRAWINGS_PER_WORD for word in words) or (name in wide and kept_wide >= WIDE_SHARE * count):
                    continue
                picture = draw(icons, style, name, "")
                if picture is not None:
                    seen.update(words)
                    left -= 1
                    kept_wide += name in wide
                    chosen.append((split, picture, words))
            if left:
                raise SystemExit(f"{style} gives {count - left} pictures for {split}, {count} are wanted")
    group = joined(words for *_, words in chosen)
    for split, picture, words in chosen:
        yield split, picture._replace(group=group[words[0]])


def positives(folder: Path, wanted: dict[tuple[str, int], int], family: dict[str, str], reader: Any) -> Iterator[tuple[str, Picture]]:
    """As many marks of each split and bin of aspect as there are other pictures; wide ones in which words are read come first."""
    icons = read_icons(folder, POSITIVE)
    texts: dict[str, str | None] = {}
    lettered: Counter[tuple[str, int]] = Counter()
    for name in sorted(by_hash(icons["icons"], POSITIVE), key=lambda name: name.endswith("-icon")):  # marks with their lettering first
        shape = 0.0 if re.search(LEFT_OUT[POSITIVE], name) else rough_aspect(icons, POSITIVE, name)
        word = name.split("-")[0]
        key = split_of(family.get(word, word)), bin_of(shape)
        if not ASPECTS[0] <= shape <= ASPECTS[-1] or not wanted.get(key):
            continue
        picture = draw(icons, POSITIVE, name, "") if shape >= WIDE and lettered[key] < wanted[key] else None
        texts[name] = read_text(reader, picture.canvas) if picture else None
        lettered[key] += bool(texts[name])
    left, seen, used = dict(wanted), Counter[str](), set[str]()
    for slack in (0, 1):  # what a bin lacks is taken from the one beside it
        for name, text in sorted(texts.items(), key=lambda item: not item[1]):
            word = name.split("-")[0]
            group = family.get(word, word)
            split = split_of(group)
            if name in used or seen[group] == MARKS_PER_BRAND or not any(count for key, count in left.items() if key[0] == split):
                continue
            picture = draw(icons, POSITIVE, name, group)
            if picture is None:
                continue
            number = bin_of(picture.aspect)
            near = [key for key, count in left.items() if count and key[0] == split and abs(key[1] - number) <= slack]
            if near:
                left[near[0]] -= 1
                seen[group] += 1
                used.add(name)
                yield split, picture._replace(text=text)
    if any(left.values()):
        raise SystemExit(f"too few marks of these splits and aspects: { {key: count for key, count in left.items() if count} }")


def read_text(reader: Any, canvas: Any) -> str:
    """What OCR is sure of. A lone letter is more often a shape that looks like one than writing."""
    result = reader(canvas)
    lines = [line for line, score in zip(result.txts or (), result.scores or (), strict=True) if score >= MIN_SCORE]
    return " ".join(word for line in lines if sum(map(str.isalnum, line)) > 1 for word in line.split())


def bin_of(aspect: float) -> int:
    return sum(aspect > edge for edge in ASPECTS[1:-1])


def main() -> None:
    """Write ``images/`` and ``brand_marks.csv`` next to this script."""
    from PIL import Image
    from rapidocr import RapidOCR

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tarballs", type=Path, help="folder with the npm tarballs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    args = parser.parse_args()
    logging.disable(logging.WARNING)

    family = joined_lines(FAMILIES)
    brands = {family.get(word, word) for word in (name.split("-")[0] for name in read_icons(args.tarballs, POSITIVE)["icons"])}
    brands |= set(family)
    pictures = list(negatives(args.tarballs, brands))
    reader = RapidOCR(params=READER)
    pictures += positives(args.tarballs, Counter((split, bin_of(picture.aspect)) for split, picture in pictures), family, reader)

    shutil.rmtree(args.out / "images", ignore_errors=True)
    rows = []
    for split, picture in pictures:
        path = Path("images") / picture.style / f"{picture.name}.webp"
        (args.out / path).parent.mkdir(parents=True, exist_ok=True)
        small = picture.canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        small.save(args.out / path, quality=QUALITY, method=6)
        rows.append(
            {
                "local_image_path": path.as_posix(),
                "label": str(picture.style == POSITIVE),
                "text_info": read_text(reader, picture.canvas) if picture.text is None else picture.text,
                "advertiser": picture.group,
                "style": picture.style,
                "id": f"{picture.style}/{picture.name}",
                "split": split,
            }
        )
    rows.sort(key=lambda row: (list(SHARES).index(row["split"]), fraction("row " + row["id"])))
    with (args.out / "brand_marks.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
