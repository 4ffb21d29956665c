"""Random changes of training pictures, drawn from a seed: the same picture, settings and seed give the same pixels in any process."""

from __future__ import annotations

import math
import random
from statistics import median

from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from eyegraft.config import Augmentation

_BLUR_SIDE = 224  # the blur radius of 0.1 to 2 pixels (SimCLR, Chen et al. 2020) is meant for pictures of this side


def is_random(settings: Augmentation) -> bool:
    """Whether `augment` can change a picture at all (a cache of encoder outputs must know)."""
    return any(value != 0 for value in settings.model_dump().values())


def augment(image: Image.Image, settings: Augmentation, seed: int) -> Image.Image:
    """One random variant of a picture, of the same size and mode; the picture itself when all settings are 0.

    In order: affine map, flip, brightness, contrast, saturation, hue, greyscale, blur, turn of a panorama. Every number is drawn whatever
    the settings are, so that switching one change on leaves the others as they were. What the affine map uncovers is filled with the median
    of the four corners: drawings on a plain ground keep that ground, and photographs get no glaring edge. A panorama is turned by whole
    columns, which is exact: its pixels only change places.

    Args:
        image: `RGB` or `L`, as `open_image` gives it; it is not modified.
        settings: half-ranges and probabilities.
        seed: the only source of randomness.
    """
    if not is_random(settings):
        return image
    draw = random.Random(seed)
    angle, across, down, zoom, brightness, contrast, saturation, hue = (draw.uniform(-1, 1) for _ in range(8))
    flip, gray, blur, radius = (draw.random() for _ in range(4))
    turn = draw.uniform(-1, 1)

    if settings.rotation_degrees or settings.translation or settings.scale:
        shift = (across * settings.translation * image.width, down * settings.translation * image.height)
        image = _moved(image, angle * settings.rotation_degrees, shift, 1 + zoom * settings.scale)
    if flip < settings.flip:
        image = ImageOps.mirror(image)
    if settings.brightness:
        image = ImageEnhance.Brightness(image).enhance(1 + brightness * settings.brightness)
    if settings.contrast:
        image = ImageEnhance.Contrast(image).enhance(1 + contrast * settings.contrast)
    if settings.saturation and image.mode == "RGB":
        image = ImageEnhance.Color(image).enhance(1 + saturation * settings.saturation)
    if settings.hue and image.mode == "RGB":
        image = _hue_shifted(image, hue * settings.hue)
    if gray < settings.grayscale:
        image = image.convert("L").convert(image.mode)
    if blur < settings.blur:
        image = image.filter(ImageFilter.GaussianBlur((0.1 + 1.9 * radius) * min(image.size) / _BLUR_SIDE))
    columns = round(turn * settings.yaw_degrees / 360 * image.width)
    return ImageChops.offset(image, columns, 0) if columns else image


def _moved(image: Image.Image, degrees: float, shift: tuple[float, float], scale: float) -> Image.Image:
    """Rotate (clockwise) and scale about the centre, then shift by (right, down) pixels."""
    cosine, sine = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    centre_x, centre_y = image.width / 2, image.height / 2
    # Pillow wants the map from output to input: in = R⁻¹ (out − centre − shift) / scale + centre
    out_x, out_y = centre_x + shift[0], centre_y + shift[1]
    inverse = (cosine, sine, centre_x - cosine * out_x - sine * out_y, -sine, cosine, centre_y + sine * out_x - cosine * out_y)
    return image.transform(image.size, Image.Transform.AFFINE, inverse, resample=Image.Resampling.BICUBIC, fillcolor=_corner_median(image))


def _corner_median(image: Image.Image) -> int | tuple[int, ...]:
    right, bottom = image.width - 1, image.height - 1
    corners = [image.getpixel(place) for place in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
    if image.mode == "L":
        return int(median(corner for corner in corners if isinstance(corner, int | float)))
    return tuple(int(median(values)) for values in zip(*(corner for corner in corners if isinstance(corner, tuple)), strict=True))


def _hue_shifted(image: Image.Image, fraction: float) -> Image.Image:
    """Turn the colour circle by a fraction of it."""
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(level + round(fraction * 256)) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
