"""What WeatherQA calls its maps and cases: `md_image/2018/thea/md0398_20180513_17_thea.gif` is of class `thea` and case `2018_md0398`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from eyegraft.errors import nearest, shown
from eyegraft.prepare._pairs import Refused

NO_CLASS = "unknown condition class"

_MAP = re.compile(r"md(?P<number>\d{1,4})_(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)_(?P<hour>\d\d)_(?P<kind>\w+)")
_CASE = (re.compile(r"(?P<year>\d{4})_?md(?P<number>\d{1,4})"), re.compile(r"md(?P<number>\d{1,4})_(?P<year>\d{4})"))
_PREFIX, _SUFFIX = "wqa:", "_cropped"


class Classes:
    """The names of the kinds of map, in every spelling: with `wqa:` before it, with or without the `_cropped` of the archive's folders."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        other = {name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else name + _SUFFIX: name for name in names}
        self._known = {**other, **{name: name for name in names}}

    def named(self, given: Any, image: Any) -> str:
        """The class that an entry names, or where it names none, that its picture's folder or name does.

        Raises:
            Refused: no class is called that.
        """
        if given is None or given == "":
            path = PurePosixPath(str(image).replace("\\", "/"))
            found = _MAP.match(path.name)
            spoken = [path.parent.name, *([found["kind"]] if found else [])]
            known = [self._known[name] for name in spoken if name in self._known]
            if not known:
                raise Refused(NO_CLASS, f"neither its entry nor the path {image!r:.80} names one of {shown(self.names, 30)}")
            return known[0]
        name = str(given).strip().removeprefix(_PREFIX)
        if name not in self._known:
            raise Refused(NO_CLASS, f"{given!r:.40}: {nearest(name, self.names) or f'one of {shown(self.names, 30)}'}")
        return self._known[name]


def case_of(name: Any, image: Any = None) -> str:
    """The case's name in one spelling (`2018_md0398`), as all files have to mean the same by it.

    By its own name where that has year and number, else by its picture's; else as it is spelled.
    """
    text = str(name).strip() if isinstance(name, str | int) and not isinstance(name, bool) else ""
    for pattern in _CASE:
        if found := pattern.fullmatch(text):
            return f"{found['year']}_md{int(found['number']):04d}"
    shown_by = _of_image(image)
    return f"{shown_by['year']}_md{int(shown_by['number']):04d}" if shown_by else text


def hour_of(image: Any) -> str | None:
    """`2018-05-13T17`, where the picture's name says it."""
    found = _of_image(image)
    return f"{found['year']}-{found['month']}-{found['day']}T{found['hour']}" if found else None


def day_of(image: Any) -> str | None:
    """The day from 12 to 12 UTC that a map's name puts it in, `2018-05-13`: a night's storms belong to the afternoon that they grew in."""
    found = _of_image(image)
    if found is None:
        return None
    try:
        time = datetime(int(found["year"]), int(found["month"]), int(found["day"]), int(found["hour"]))
    except ValueError:
        return None  # no date: then its case stands alone
    return f"{time - timedelta(hours=12):%Y-%m-%d}"


def _of_image(image: Any) -> Mapping[str, str] | None:
    found = _MAP.match(PurePosixPath(image.replace("\\", "/")).name) if isinstance(image, str) else None
    return found.groupdict() if found else None
