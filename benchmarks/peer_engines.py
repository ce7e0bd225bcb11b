"""Engines that run one network over one slide, each as its own documents say; ours among them.

    python benchmarks/peer_engines.py ENGINE JOB.json

runs one engine in this process and prints what it took as one line of JSON. ``bench_peers.py``
calls it so for each engine, in turns. All engines get the very same callable, which counts windows
and seconds; what they read, how they cut, blend and store, is their own.

Time ends where the engine hands over its result: ours when labels, probabilities, outlines and
table lie on disk, MONAI's when its array is filled, TIAToolbox's when its Zarr store is written.
Imports, the network's making and a warm-up come before; the memory they hold is what "above the
network" leaves out.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from renal_utils.augment import PIXEL_MEAN, PIXEL_STD, to_batch
from renal_utils.checkpoints import load_checkpoint
from renal_utils.labels import GLOMERULI
from renal_utils.models.build import build_model
from renal_utils.prediction import Predict, make_predictor
from renal_utils.runtime import peak_memory_bytes, seed_everything
from renal_utils.slides import open_slide
from renal_utils.stitch_plan import StitchPlan, choose_windows
from renal_utils.stitching import stitch_slide
from renal_utils.window_reader import read_windows
from renal_utils.windows import window_weights

MAP_NAME = "map.npy"
MIDDLE = 0.8  # normalised red between the drawn tissue and the purple in it
CHEAP = "darkness"  # not a network: the answer of ``Answer`` alone, for the cost of the engine


@dataclass(frozen=True)
class Job:
    """What all engines are given.

    Attributes:
        slide: The slide, at its finest level.
        folder: Where an engine may write.
        network: A name of ``MODELS`` (seeded random weights), ``darkness``, or a checkpoint's path.
        patch_px: Side of a window.
        stride_px: Step between windows.
        batch: Windows at once.
        window: Weights of a window's pixels, where an engine lets one choose.
        precision: As for ``make_predictor``.
        min_object: Least area of an object of ours, pixels; peers look for no objects.
        threads: Of torch.
        timed_batches: Batches on which the network alone is timed, before and after.
        keep_map: Store the probabilities as 8 bits, for a comparison.
    """

    slide: str
    folder: str
    network: str = "unet_resnet34"
    patch_px: int = 512
    stride_px: int = 256
    batch: int = 8
    window: str = "hann"
    precision: str = "bf16-mixed"
    min_object: int = 200
    threads: int = 2
    timed_batches: int = 4
    keep_map: bool = True

    @property
    def plan(self) -> StitchPlan:
        return StitchPlan(
            patch_px=self.patch_px,
            stride_px=self.stride_px,
            downsample=1.0,
            window=self.window,
            batch_size=self.batch,
            min_object_px=self.min_object,
        )


@dataclass(frozen=True)
class Cost:
    """What one engine took: windows seen, seconds, and bytes above the network.

    ``processor`` is the time that its threads were given, which other work on the machine changes
    far less than ``wall``.
    """

    engine: str
    windows: int
    wall: float
    forward: float
    inside: float
    processor: float
    peak: int

    @property
    def over_forward(self) -> float:
        """Wall time over that of the network alone on as many windows."""
        return self.wall / self.forward


class Answer:
    """Counts what passes; a random network runs at its full cost but answers by darkness.

    Its own answer would be noise, which no post-processing is made for, and by which no two maps
    could be compared.
    """

    def __init__(self, network: Predict | None, *, by_darkness: bool) -> None:
        self._network, self._by_darkness = network, by_darkness
        self.windows, self.seconds = 0, 0.0
        self.identity = getattr(network, "identity", CHEAP)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        found = None if self._network is None else self._network(images)
        if found is None or self._by_darkness:
            found = (MIDDLE - images[:, :1].float()).sigmoid()
        self.seconds += time.perf_counter() - started
        self.windows += len(images)
        return found


def make_answer(job: Job) -> Answer:
    """Return the callable that all engines get."""
    if job.network == CHEAP:
        return Answer(None, by_darkness=True)
    if job.network.endswith(".safetensors"):
        model = load_checkpoint(job.network)[0]
        return Answer(make_predictor(model, precision=job.precision), by_darkness=False)
    seed_everything(0)
    model = build_model(job.network, num_classes=1)
    return Answer(make_predictor(model, precision=job.precision), by_darkness=True)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Return RGB ``B 3 H W`` of 0 to 255 as the network takes it."""
    mean, std = (
        torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD)
    )
    return images.float().div_(255).sub_(mean).div_(std)


def run_ours(job: Job, answer: Answer) -> np.ndarray | Path:
    """Stitch the slide as ``renal segment`` does; return where the probabilities lie."""
    with open_slide(job.slide) as slide:
        result = stitch_slide(
            slide,
            answer,
            Path(job.folder) / "ours",
            plan=job.plan,
            label_set=GLOMERULI,
            resume=False,
            progress=False,
        )
    return result.probability_path


def run_monai(job: Job, answer: Answer) -> np.ndarray:
    """MONAI's ``sliding_window_inference`` on the whole slide, read and normalised in memory."""
    from monai.data import WSIReader
    from monai.inferers import sliding_window_inference

    reader = WSIReader("tifffile", level=0, dtype=np.uint8)
    pixels, _ = reader.get_data(reader.read(job.slide))
    weights = torch.from_numpy(window_weights(job.window, job.patch_px))
    with torch.inference_mode():  # it changes answers in place
        found = sliding_window_inference(
            normalise(torch.from_numpy(pixels)[None]),
            job.patch_px,
            job.batch,
            answer,
            overlap=1 - job.stride_px / job.patch_px,
            roi_weight_map=weights,
        )
    return found[0, 0].numpy()


def run_monai_zarr(job: Job, answer: Answer) -> Any:
    """MONAI's ``PatchInferer``: windows from the file by OpenSlide, sums in Zarr stores."""
    from monai.inferers import PatchInferer, WSISlidingWindowSplitter, ZarrAvgMerger

    names = ("store", "value_store", "count_store")  # given: the default ones are of one folder
    inferer = PatchInferer(
        splitter=WSISlidingWindowSplitter(
            job.patch_px, overlap=1 - job.stride_px / job.patch_px, reader="OpenSlide", level=0
        ),
        merger_cls=ZarrAvgMerger,
        batch_size=job.batch,
        preprocessing=normalise,
        chunks=(1, 1, job.stride_px, job.stride_px),
        **{name: str(Path(job.folder) / f"{name}.zarr") for name in names},
    )
    return inferer(job.slide, answer)[0, 0]


def run_tiatoolbox(job: Job, answer: Answer, *, mask: bool) -> Any:
    """TIAToolbox's ``SemanticSegmentor`` with probabilities kept; windows of its tissue or all."""
    import zarr
    from tiatoolbox.models.engine.io_config import IOSegmentorConfig
    from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor

    scale = [{"units": "baseline", "resolution": 1.0}]
    engine = SemanticSegmentor(_tiatoolbox_model(answer), batch_size=job.batch, verbose=False)
    result = engine.run(
        [Path(job.slide)],
        patch_mode=False,
        ioconfig=IOSegmentorConfig(
            input_resolutions=scale,
            output_resolutions=scale,
            patch_input_shape=(job.patch_px, job.patch_px),
            patch_output_shape=(job.patch_px, job.patch_px),
            stride_shape=(job.stride_px, job.stride_px),
            save_resolution=scale[0],
        ),
        auto_get_mask=mask,
        save_dir=Path(job.folder) / "tiatoolbox",
        overwrite=True,
        output_type="zarr",
        return_probabilities=True,
    )
    return zarr.open(str(next(iter(result.values()))), mode="r")["probabilities"]


def _tiatoolbox_model(answer: Answer) -> nn.Module:
    """Return the callable in the class that TIAToolbox wants its models to be of."""
    from tiatoolbox.models.models_abc import ModelABC

    class Model(ModelABC):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return answer(images)

        @staticmethod
        def infer_batch(model: nn.Module, batch_data: torch.Tensor, *, device: str) -> np.ndarray:
            images = normalise(torch.as_tensor(batch_data).permute(0, 3, 1, 2))
            return model(images).permute(0, 2, 3, 1).numpy()

        @staticmethod
        def postproc(image: np.ndarray) -> np.ndarray:
            return (image[..., 0] > 0.5).astype(np.uint8)

    return Model()


ENGINES: Mapping[str, Callable[[Job, Answer], Any]] = {
    "ours": run_ours,
    "monai": run_monai,
    "monai_zarr": run_monai_zarr,
    "tiatoolbox_mask": partial(run_tiatoolbox, mask=True),
    "tiatoolbox": partial(run_tiatoolbox, mask=False),
}
# What an engine imports when it is called; done before the clock starts. First: who must be there.
MODULES: Mapping[str, Sequence[str]] = {
    "ours": ["renal_utils"],
    "monai": ["monai", "monai.data", "monai.inferers", "tifffile"],
    "monai_zarr": ["monai", "monai.data", "monai.inferers", "openslide", "zarr"],
    "tiatoolbox_mask": ["tiatoolbox", "tiatoolbox.models.engine.semantic_segmentor", "openslide"],
    "tiatoolbox": ["tiatoolbox", "tiatoolbox.models.engine.semantic_segmentor", "openslide"],
}


def first_batches(job: Job) -> list[torch.Tensor]:
    """Return batches from the middle of the slide's tissue, normalised."""
    with open_slide(job.slide) as slide:
        view = slide.at_downsample(1.0)
        windows, _ = choose_windows(view, job.plan)
        if len(windows) == 0:
            raise ValueError(f"{job.slide}: no tissue was found, so there is nothing to compare")
        middle = max(0, len(windows) // 2 - job.batch)
        chosen = windows[middle : middle + 2 * job.batch]
        read = read_windows(view, chosen, job.patch_px, batch_size=job.batch)
        return [to_batch(batch.images) for batch in read]


def time_network(answer: Answer, batches: list[torch.Tensor], runs: int) -> list[float]:
    """Return seconds a window of the network alone, one value a batch."""
    seconds = []
    for number in range(runs):
        images = batches[number % len(batches)]
        started = time.perf_counter()
        answer(images)
        seconds.append((time.perf_counter() - started) / len(images))
    return seconds


def measure(engine: str, job: Job) -> Cost:
    """Run one engine on the job, in this process, and return what it took."""
    torch.set_num_threads(job.threads)
    for module in MODULES[engine]:
        import_module(module)
    answer, batches = make_answer(job), first_batches(job)
    time_network(answer, batches, 2)
    alone = time_network(answer, batches, job.timed_batches)
    answer.windows, answer.seconds = 0, 0.0
    before, started, given = peak_memory_bytes(), time.perf_counter(), time.process_time()
    found = ENGINES[engine](job, answer)
    wall, processor = time.perf_counter() - started, time.process_time() - given
    peak = peak_memory_bytes() - before
    windows, inside = answer.windows, answer.seconds
    alone += time_network(answer, batches, job.timed_batches)
    if job.keep_map:
        keep_map(found, Path(job.folder) / MAP_NAME)
    forward = statistics.median(alone) * windows
    return Cost(engine, windows, wall, forward, inside, processor, peak)


def keep_map(found: Any, path: Path) -> None:
    """Write probabilities ``H W`` (an array of any kind, or our file) as 8 bits, row by row."""
    if isinstance(found, Path):
        with open_slide(found) as slide:
            width, height = slide.size_l0
            view = slide.at_downsample(1.0)
            kept = np.lib.format.open_memmap(path, "w+", np.uint8, (height, width))
            for y in range(0, height, 512):
                kept[y : y + 512] = view.read_labels((0, y), (width, min(512, height - y)))
        return
    kept = np.lib.format.open_memmap(path, "w+", np.uint8, tuple(found.shape[:2]))
    for y in range(0, len(kept), 512):
        rows = np.nan_to_num(np.asarray(found[y : y + 512]))
        kept[y : y + 512] = np.rint(rows.reshape(rows.shape[:2]) * 255)


def main() -> None:
    """Run one engine, and print its cost as JSON."""
    engine, job = sys.argv[1], Job(**json.loads(Path(sys.argv[2]).read_text()))
    print(json.dumps(asdict(measure(engine, job))))


if __name__ == "__main__":
    main()
