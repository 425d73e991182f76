"""How the cost of a path grows with what it is given: seconds against size, and the exponent.

Only our side; sizes are doubled until they are large enough to drown what does not grow.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.clock import Clock
from bench.paths import PATHS, Scale
from models.registry import use_threads


@dataclass(frozen=True)
class Growth:
    """Seconds, and for stages in processes of their own bytes too, by size."""

    title: str
    sizes: Sequence[int]
    seconds: Sequence[float]
    peaks: Sequence[int] = ()

    @property
    def exponent(self) -> float:
        """Slope of the line through the logarithms: 1 is linear."""
        slope, _ = np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)
        return float(slope)


def _images(scale: Scale, size: int) -> Scale:
    return replace(scale, images=size)


def _caption_tokens(scale: Scale, size: int) -> Scale:
    return replace(scale, caption_tokens=size)


def _captions(scale: Scale, size: int) -> Scale:
    return replace(scale, captions=size)


def _image_tokens(scale: Scale, size: int) -> Scale:
    network = replace(scale.model.network, num_vq_tokens=size)
    return replace(scale, model=replace(scale.model, network=network))


def _width(scale: Scale, size: int) -> Scale:
    network = replace(scale.model.network, hidden_size=size, intermediate_size=4 * size)
    return replace(scale, model=replace(scale.model, network=network))


# Path, what grows, and to what sizes: of the models of the published timings, and of tiny ones.
GROWTHS = {
    "images drawn": ("images", _images, {"mid": (2, 4, 8, 16), "tiny": (2, 4)}),
    "image tokens drawn": ("images", _image_tokens, {"mid": (64, 128, 256, 512), "tiny": (16, 32)}),
    "tokens of captions": ("captions", _caption_tokens, {"mid": (8, 16, 32, 64), "tiny": (2, 4)}),
    "image tokens of a training step": (
        "pair-step", _image_tokens, {"mid": (64, 128, 256, 512), "tiny": (16, 32)},
    ),
    "width of a training step": ("pair-step", _width, {"mid": (128, 256, 512), "tiny": (64, 128)}),
    "captions scored": (
        "caption-scores", _captions, {"mid": (1000, 2000, 4000, 8000), "tiny": (20, 40)},
    ),
}  # fmt: skip
# Records through stages in processes of their own, whose most memory is then theirs alone. Models
# are stubs.
STREAMS: Mapping[str, tuple[str, Mapping[str, Sequence[int]]]] = {
    "records paired": ("bench.pairing", {"mid": (1_000, 10_000, 100_000, 1_000_000)}),
    **{
        f"records through {stage}": (f"bench.streams {stage}", {"mid": (1_000, 10_000, 100_000)})
        for stage in ("sample-captions", "sample-images", "score-captions", "score-images")
    },
}
TINY_STREAM = (100, 200)
NAMES = [*GROWTHS, *STREAMS]


def growths(titles: Sequence[str], name: str, scales: Mapping[str, Scale]) -> Iterator[Growth]:
    """Each of these as soon as it is measured, at the sizes of a scale."""
    use_threads(0)
    clock = Clock("cpu")
    for title in (title for title in titles if title in GROWTHS):
        path, change, sizes = GROWTHS[title]
        print(f"{title} ...", file=sys.stderr, flush=True)
        seconds = []
        for size in sizes[name]:
            call = PATHS[path].build(change(scales[name], size), "ours")
            seconds.append(clock.time(call, runs=2).seconds)
        yield Growth(title, sizes[name], seconds)
    for title in (title for title in titles if title in STREAMS):
        module, stream = STREAMS[title]
        yield _stream(title, module, stream.get(name, TINY_STREAM))


def _stream(title: str, module: str, sizes: Sequence[int]) -> Growth:
    found = []
    for size in sizes:
        print(f"{title}: {size} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", *module.split(), str(size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    seconds = [one["seconds"] for one in found]
    return Growth(title, sizes, seconds, [int(one["peak"]) for one in found])
