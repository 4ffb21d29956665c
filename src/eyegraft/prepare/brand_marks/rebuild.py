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
ASPECTS = (0.5, 0.8, 0.95, 1.05, 1.25, 2.0)  # edges of the bins of width / height in which the two classes are matched
MARKS_PER_BRAND = 2
MIN_SCORE = 0.8  # of the OCR

POSITIVE = "logos"
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the brands
NEGATIVES = {  # split -> style -> number of pictures; no style stands in two splits
    "train": {"noto": 70, "fluent_emoji_flat": 60, "flat_color_icons": 45, "maki": 35},
    "val": {"fluent_color": 34, "temaki": 36},
    "test": {"marketeq": 34, "healthicons": 26, "circle_flags": 20},
}
_PEOPLE = r"^(wo)?m[ae]n\b|^(person|people|couple|family|kiss|boy|girl|hand)"
LEFT_OUT = {  # names of marks, lettering of brands, variants of one drawing, and pictures of people in all their variants
    "noto": rf"tone|flag|hugging-face|\b(light|medium|dark)\b|{_PEOPLE}",
    "fluent_emoji_flat": rf"flag|hugging-face|paperclip|\b(light|medium|dark)\b|{_PEOPLE}",
    "flat_color_icons": r"logo|android|bbc|debian|dribbble|google|icons8|ipad|iphone|kindle|linux|nook|reddit|steam|stumble|vlc"
    r"|wikipedia|copyleft",
    "maki": r"stroked",
    "fluent_color": r"copilot|teams|office|microsoft|linkedin|xbox|skype|agents",
    "temaki": r"logo",
    "marketeq": r"logo|touchid",
    "healthicons": r"logo|negative|24px|dhis2|^(baby|boy|girl|man|woman|old|young)|anus|breast|genital|penis|vagina|sex|condom|rectum",
    "circle_flags": r"^(?!..$)",  # countries alone: two letters
    "logos": r"copyleft|freedomdefined|-dark$|-clean$",
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
matter mattermost
mailchimp mandrill
mapbox
mdn mozilla firefox rust
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

LICENCES = {style: style.replace("_", "-") for style in (POSITIVE, *(style for styles in NEGATIVES.values() for style in styles))}


class Picture(NamedTuple):
    """One picture on the large canvas, not yet written."""

    style: str
    name: str
    group: str
    aspect: float
    canvas: Any


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


def draw(icons: dict[str, Any], style: str, name: str, group: str) -> Picture | None:
    """The icon cut to what is not white, set on a white canvas at a hashed size and place; None where nearly nothing shows."""
    import resvg_py
    from PIL import Image, ImageChops

    key = f"{style}/{name}"
    document, ratio = svg(icons, name, ink(key))
    if not 0.3 < ratio < 3.4:
        return None
    width, height = (2 * LARGE, round(2 * LARGE / ratio)) if ratio >= 1 else (round(2 * LARGE * ratio), 2 * LARGE)
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=document, width=width, height=height)))).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    difference = ImageChops.difference(flat, Image.new("RGB", flat.size, "white")).convert("L").point(lambda value: 255 * (value > 12))
    box = difference.getbbox()
    if box is None:
        return None
    inked = difference.crop(box)
    if inked.histogram()[255] < 0.06 * inked.width * inked.height:
        return None
    aspect = inked.width / inked.height
    if not ASPECTS[0] <= aspect <= ASPECTS[-1]:
        return None
    side = (0.6 + 0.32 * fraction("size " + key)) * LARGE
    new = tuple(max(1, round(length * side / max(inked.size))) for length in inked.size)
    canvas = Image.new("RGB", (LARGE, LARGE), "white")
    place = tuple(round((LARGE - length) * (0.5 + 0.6 * (fraction(f"{axis} {key}") - 0.5))) for axis, length in zip("xy", new, strict=True))
    canvas.paste(flat.crop(box).resize(new, Image.Resampling.LANCZOS), place)
    return Picture(style, name, group, aspect, canvas)


def families() -> dict[str, str]:
    """First word of a mark's name -> the family it belongs to, lines that share a word made one."""
    parent: dict[str, str] = {}

    def root(word: str) -> str:
        parent.setdefault(word, word)
        return word if parent[word] == word else root(parent[word])

    for line in FAMILIES.strip().splitlines():
        head, *rest = line.split()
        for word in rest:
            parent[root(word)] = root(head)
    return {word: root(word) for word in parent}


def by_hash(names: Iterable[str], style: str) -> list[str]:
    return sorted(names, key=lambda name: fraction(f"order {style}/{name}"))


def concept(style: str, name: str) -> str:
    """The thing that an icon shows: the first word of its name, or the whole name of a flag."""
    return f"flag-{name}" if style == "circle_flags" else name.split("-")[0]


def split_of(group: str) -> str:
    place, edge = fraction("split " + group), 0.0
    for split, share in SHARES.items():
        edge += share
        if place < edge:
            return split
    return "test"


def negatives(folder: Path, brands: set[str]) -> Iterator[tuple[str, Picture]]:
    for split, styles in NEGATIVES.items():
        for style, count in styles.items():
            icons = read_icons(folder, style)
            newest = {
                re.sub(r"-\d+$", "", name): name for name in sorted(icons["icons"], key=lambda name: (len(name), name))
            }  # one size of each
            wanted = [name for name in newest.values() if not re.search(LEFT_OUT[style], name)]
            seen: Counter[str] = Counter()
            chosen = 0
            for name in by_hash(wanted, style):
                group = concept(style, name)
                if chosen == count or group in brands or seen[group] == 2 or (style != "circle_flags" and split_of(group) != split):
                    continue
                picture = draw(icons, style, name, group)
                if picture is not None:
                    seen[group] += 1
                    chosen += 1
                    yield split, picture
            if chosen < count:
                raise SystemExit(f"{style} gives {chosen} pictures for {split}, {count} are wanted")


def positives(folder: Path, wanted: dict[tuple[str, int], int], family: dict[str, str]) -> Iterator[tuple[str, Picture]]:
    """As many marks of each split and bin of aspect as there are other pictures."""
    icons = read_icons(folder, POSITIVE)
    left, seen = dict(wanted), Counter[str]()
    for name in sorted(by_hash(icons["icons"], POSITIVE), key=lambda name: name.endswith("-icon")):  # marks with their lettering first
        word = name.split("-")[0]
        group = family.get(word, word)
        split = split_of(group)
        if re.search(LEFT_OUT[POSITIVE], name) or seen[group] == MARKS_PER_BRAND or not any(left[key] for key in left if key[0] == split):
            continue
        picture = draw(icons, POSITIVE, name, group)
        if picture is not None and left.get((split, bin_of(picture.aspect)), 0):
            left[split, bin_of(picture.aspect)] -= 1
            seen[group] += 1
            yield split, picture
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

    family = families()
    brands = {family.get(word, word) for word in (name.split("-")[0] for name in read_icons(args.tarballs, POSITIVE)["icons"])}
    brands |= set(family)
    pictures = list(negatives(args.tarballs, brands))
    pictures += positives(args.tarballs, Counter((split, bin_of(picture.aspect)) for split, picture in pictures), family)

    reader = RapidOCR()
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
                "text_info": read_text(reader, picture.canvas),
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
