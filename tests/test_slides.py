import multiprocessing
import pickle
import struct
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from renal_utils import slides
from renal_utils.slides import Slide, open_slide
from renal_utils.tiff_files import level_downsample
from renal_utils.tile_cache import TileCache

SIZE = (300, 210)  # width, height; no multiple of any tile
APERIO = "Aperio Image Library v11.2.1\r\n300x210 (64x64) J2K|AppMag = 20|MPP = {}|Left = 1.5"


def make_image(size=SIZE, seed=0, blur=True):
    """RGB with structure at many scales, so that lossy codecs and scales can be compared."""
    rng = np.random.default_rng(seed)
    small = rng.integers(30, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    return cv2.resize(small, size, interpolation=cv2.INTER_CUBIC if blur else cv2.INTER_NEAREST)


def write(path, image, **options):
    tifffile.imwrite(path, image, **options)
    return path


def read_all(path, **options):
    with open_slide(path, **options) as slide:
        return slide.at_downsample(1).read((0, 0), slide.size_l0)


def chw(image):
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def ycbcr(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)[:, :, [0, 2, 1]]


TILED = {"tile": (64, 48)}
RGB = {"photometric": "rgb"}
PLANES = {"photometric": "rgb", "planarconfig": "separate"}
GREY_PAGES = {"photometric": "minisblack"}
LOSSLESS = {
    "tiled": (lambda a: a, TILED | RGB),
    "deflate with predictor": (lambda a: a, TILED | RGB | {"compression": 8, "predictor": True}),
    "lzw": (lambda a: a, TILED | RGB | {"compression": "lzw"}),
    "big TIFF, big endian": (lambda a: a, TILED | RGB | {"bigtiff": True, "byteorder": ">"}),
    "planes, tiled": (chw, TILED | PLANES | {"compression": "zlib"}),
    "1x1xCxHxW in planes": (lambda a: chw(a)[None, None], TILED | PLANES),
    "1x1xCxHxW in pages": (lambda a: chw(a)[None, None], TILED | GREY_PAGES),
    "1x1xCxHxW of ImageJ": (
        lambda a: chw(a)[None, None],
        {"imagej": True, "metadata": {"axes": "TZCYX"}},
    ),
    "CxHxW of OME": (chw, TILED | GREY_PAGES | {"ome": True, "metadata": {"axes": "CYX"}}),
    "one block of HxWxC": (lambda a: a, RGB),
    "one block of CxHxW": (chw, PLANES),
    "rows as pages": (lambda a: a, GREY_PAGES),
    "strips": (lambda a: a, RGB | {"rowsperstrip": 16, "compression": "zlib"}),
    "strips in planes": (chw, PLANES | {"rowsperstrip": 50, "compression": "lzw"}),
    "RGBA": (lambda a: np.dstack([a, a[:, :, 0]]), TILED | RGB | {"extrasamples": ["unassalpha"]}),
    "Aperio 33005": (lambda a: a, TILED | RGB | {"compression": 33005}),
}


@pytest.mark.parametrize("layout", LOSSLESS)
def test_every_lossless_layout_reads_as_the_image_written(tmp_path, layout):
    image = make_image(blur=False)
    rearrange, options = LOSSLESS[layout]
    path = write(tmp_path / "slide.tif", rearrange(image), **options)
    with open_slide(path) as slide:
        assert (slide.size_l0, slide.channels, len(slide.levels)) == (SIZE, 3, 1)
    np.testing.assert_array_equal(read_all(path), image)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "jpeg", "subsampling": (2, 2)},
        {"compression": "jpeg", "subsampling": (1, 1)},
        {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}},
        {"compression": "jpeg2000", "compressionargs": {"level": 40}},
    ],
    ids=["JPEG 4:2:0", "JPEG 4:4:4", "JPEG RGB", "JPEG 2000"],
)
def test_every_lossy_codec_reads_close_to_the_image_written(tmp_path, options):
    image = make_image()
    path = write(tmp_path / "slide.tif", image, tile=(64, 48), photometric="rgb", **options)
    difference = np.abs(read_all(path).astype(int) - image)
    assert difference.mean() < 3  # swapped or unconverted colours differ by 40 or more


@pytest.mark.parametrize("subsampling_tag", [(1, 1), (2, 1)])
def test_ycbcr_jpeg_2000_of_aperio_reads_as_rgb_whatever_its_tags_say(tmp_path, subsampling_tag):
    image = make_image()
    path = write(
        tmp_path / "slide.svs", ycbcr(image), **TILED, photometric="ycbcr", compression=33003,
        compressionargs={"mct": False}, description=APERIO.format(0.5), metadata=None,
    )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["YCbCrSubSampling"].overwrite(subsampling_tag)
    assert np.abs(read_all(path).astype(int) - image).max() <= 2


def test_grey_is_repeated_and_palettes_and_bits_become_colours(tmp_path):
    grey = make_image()[:, :, 0]
    found = read_all(write(tmp_path / "grey.tif", grey, **TILED))
    np.testing.assert_array_equal(found, np.dstack([grey] * 3))
    found = read_all(write(tmp_path / "inverse.tif", 255 - grey, **TILED, photometric="miniswhite"))
    np.testing.assert_array_equal(found, np.dstack([grey] * 3))
    colours = np.random.default_rng(0).integers(0, 256, (3, 256), dtype=np.uint8)
    path = write(tmp_path / "palette.tif", grey, **TILED, photometric="palette",
                 colormap=colours.astype(np.uint16) * 257)  # fmt: skip
    np.testing.assert_array_equal(read_all(path), colours.T[grey])
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.at_downsample(1).read_labels((0, 0), SIZE), grey)
    bits = write(tmp_path / "bits.tif", grey > 128, photometric="minisblack")
    np.testing.assert_array_equal(read_all(bits)[:, :, 1], np.where(grey > 128, 255, 0))
    with open_slide(bits) as slide:
        np.testing.assert_array_equal(slide.at_downsample(1).read_labels((0, 0), SIZE), grey > 128)


def test_a_tile_that_the_writer_left_out_is_glass(tmp_path):
    image = make_image((128, 64))
    tiles = iter([image[:64, :64], None])
    options = {"shape": (64, 128, 3), "dtype": np.uint8, "tile": (64, 64), "compression": "zlib"}
    found = read_all(write(tmp_path / "sparse.tif", tiles, photometric="rgb", **options))
    np.testing.assert_array_equal(found[:, :64], image[:, :64])
    assert (found[:, 64:] == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_jpeg_or_png_is_a_slide_of_one_level(tmp_path, mode, suffix):
    if suffix == "jpg" and mode in ("P", "RGBA"):
        pytest.skip(f"JPEG has no mode {mode}")
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(make_image()).convert(mode).save(path)
    with open_slide(path, mpp=0.5) as slide:
        assert (slide.size_l0, slide.mpp, len(slide.levels)) == (SIZE, 0.5, 1)
    np.testing.assert_array_equal(read_all(path), np.asarray(Image.open(path).convert("RGB")))


# Pyramids


def shrink(image, ratio):
    size = (round(image.shape[1] / ratio), round(image.shape[0] / ratio))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def write_levels(path, levels, *, subifds, description=None):
    with tifffile.TiffWriter(path) as tif:
        for number, level in enumerate(levels):
            options = {"subifds": len(levels) - 1} if subifds and number == 0 else {}
            tif.write(
                level, tile=(64, 64), photometric="rgb", compression="zlib", metadata=None,
                subfiletype=1 if subifds and number else 0,
                description=description if number == 0 else None, **options,
            )  # fmt: skip
    return path


@pytest.mark.parametrize("kind", ["SubIFDs", "pages", "Aperio"])
def test_pyramids_of_any_storage_give_their_levels(tmp_path, kind):
    image = make_image((640, 416))
    levels = [image, shrink(image, 3.2), shrink(image, 6.4)]
    aperio = APERIO.format(0.25) if kind == "Aperio" else None
    path = write_levels(tmp_path / "s.tif", levels, subifds=kind == "SubIFDs", description=aperio)
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [1.0, 3.2, 6.4]
        for level in slide.levels[1:]:
            found = slide.at_downsample(level.downsample).read((0, 0), level.size_px)
            np.testing.assert_array_equal(found, levels[slide.levels.index(level)])


def test_thumbnails_labels_and_other_images_are_no_levels(tmp_path):
    image = make_image((640, 416))
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as tif:
        for other in (make_image((320, 100)), image, shrink(image, 2), image[:, :, 0]):
            tif.write(other, photometric="rgb" if other.ndim == 3 else None, tile=(64, 64))
    with open_slide(path) as slide:
        assert [level.size_px for level in slide.levels] == [(640, 416), (320, 208)]


@pytest.mark.parametrize(
    "size_l0, size, downsample",
    [
        ((10001, 8003), (2500, 2000), 4.0),  # rounded down
        ((10001, 8003), (2501, 2001), 4.0),  # rounded up
        ((10001, 8003), (3125, 2501), 3.2),
        ((46000, 32914), (2875, 2057), 16.0),
        ((300, 210), (300, 210), 1.0),
    ],
)
def test_the_downsample_of_a_level_is_the_one_its_writer_meant(size_l0, size, downsample):
    assert level_downsample(size_l0, size) == downsample


def test_a_view_is_the_same_picture_whichever_level_it_comes_from(tmp_path):
    image = make_image((960, 640))
    one = write_levels(tmp_path / "one.tif", [image], subifds=False)
    levels = [image, shrink(image, 2), shrink(image, 3.2), shrink(image, 8)]
    many = write_levels(tmp_path / "many.tif", levels, subifds=True)
    with open_slide(one) as flat, open_slide(many) as pyramid:
        for downsample in (2.0, 2.7, 3.2, 5.0, 8.0, 11.3):
            a, b = flat.at_downsample(downsample), pyramid.at_downsample(downsample)
            assert b._level > 0
            size = a.size_px
            a, b = a.read((0, 0), size).astype(float), b.read((0, 0), size)
            shifted = np.abs(a[:, 1:] - a[:, :-1]).mean()
            assert np.abs(a - b).mean() < shifted / 4, downsample


@pytest.fixture(scope="module")
def odd_slide(tmp_path_factory):
    """Levels 1, 2, 3.2 and 6.4 of noise; sizes that no ratio divides."""
    image = np.random.default_rng(3).integers(0, 256, (331, 433, 3), dtype=np.uint8)
    levels = [image, shrink(image, 2), shrink(image, 3.2), shrink(image, 6.4)]
    return write_levels(tmp_path_factory.mktemp("odd") / "odd.tif", levels, subifds=True)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    downsample=st.one_of(
        st.sampled_from([1, 2, 3.2, 4, 6.4, 2.0 / 3.2, 0.5, 3, 9.6]), st.floats(0.3, 20)
    ),
    data=st.data(),
)
def test_a_read_is_the_crop_of_any_larger_read(odd_slide, downsample, data):
    with open_slide(odd_slide) as slide:
        view = slide.at_downsample(downsample)
        width, height = (min(side, 150) + 12 for side in view.size_px)
        left = data.draw(st.integers(-6, max(-6, view.size_px[0] - width + 6)))
        top = data.draw(st.integers(-6, max(-6, view.size_px[1] - height + 6)))
        large = view.read((left, top), (width, height))
        x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        w, h = data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))
        small = view.read((left + x, top + y), (w, h))
        np.testing.assert_array_equal(small, large[y : y + h, x : x + w])


def test_reading_in_steps_gives_the_same_bytes(odd_slide, monkeypatch):
    with open_slide(odd_slide) as slide:
        for downsample in (0.7, 1, 1.3, 2, 4.4, 9.6):
            view = slide.at_downsample(downsample)
            monkeypatch.undo()
            whole = view.read((-2, -3), (view.size_px[0] + 5, view.size_px[1] + 5))
            monkeypatch.setattr(slides, "_STEP_BYTES", 20_000)
            parts = view.read((-2, -3), (view.size_px[0] + 5, view.size_px[1] + 5))
            np.testing.assert_array_equal(parts, whole)


def test_outside_the_slide_is_white_and_its_rim_is_not(tmp_path):
    dark = np.full((101, 103, 3), 20, np.uint8)
    with open_slide(write(tmp_path / "dark.tif", dark, **TILED, **RGB)) as slide:
        for downsample in (1, 2, 1.7, 0.6, 40.0):
            view = slide.at_downsample(downsample)
            width, height = view.size_px
            found = view.read((-3, -4), (width + 8, height + 8))
            assert (found[4 : 4 + height, 3 : 3 + width] == 20).all()
            found[4 : 4 + height, 3 : 3 + width] = 255
            assert (found == 255).all()
        far = slide.at_downsample(1).read((10**6, -(10**6)), (5, 4))
        assert far.shape == (4, 5, 3) and (far == 255).all()


def test_thumbnail_fits_and_is_never_enlarged(tmp_path):
    with open_slide(write(tmp_path / "s.tif", make_image(), **TILED, **RGB)) as slide:
        assert slide.thumbnail(100).shape == (70, 100, 3)
        assert slide.thumbnail(5000).shape == (210, 300, 3)


# Labels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("downsample", [1, 2, 2.6, 0.5, 7])
def test_labels_are_the_level_0_pixels_under_the_centres(tmp_path, dtype, downsample):
    labels = np.random.default_rng(0).integers(0, 6, (210, 300)).astype(dtype) * (250 // 5)
    path = tmp_path / "labels.tif"
    with tifffile.TiffWriter(path) as tif:  # a coarser level that would give wrong answers
        tif.write(labels, tile=(64, 64), subifds=1, compression="zlib")
        tif.write(np.full((105, 150), 77, dtype), tile=(64, 64), subfiletype=1)
    with open_slide(path) as slide:
        view = slide.at_downsample(downsample)
        width, height = view.size_px
        found = view.read_labels((-1, -2), (width + 2, height + 3), fill=99)
    columns = np.floor((np.arange(width) + 0.5) * downsample).astype(int).clip(max=299)
    rows = np.floor((np.arange(height) + 0.5) * downsample).astype(int).clip(max=209)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[2:-1, 1:-1], labels[rows][:, columns])
    assert (found[:2] == 99).all() and (found[-1] == 99).all() and (found[:, 0] == 99).all()


def test_channels_of_a_probability_map_are_read_together(tmp_path):
    maps = np.random.default_rng(0).integers(0, 256, (210, 300, 5), dtype=np.uint8)
    path = write(tmp_path / "p.tif", maps, **TILED, photometric="minisblack", planarconfig="contig")
    with open_slide(path) as slide:
        view = slide.at_downsample(2)
        found = view.read_channels((-1, 0), (151, 105))
        np.testing.assert_allclose(
            found[:, 1:], maps.reshape(105, 2, 150, 2, 5).mean((1, 3)), atol=0.51
        )
        assert (found[:, 0] == 0).all()
        with pytest.raises(ValueError, match="5 channels of uint8"):
            view.read((0, 0), (5, 5))
        with pytest.raises(ValueError, match="a label image has one"):
            view.read_labels((0, 0), (5, 5))


def test_16_bit_images_are_refused_with_the_reason(tmp_path):
    path = write(tmp_path / "deep.tif", make_image().astype(np.uint16) * 16, **TILED, **RGB)
    with open_slide(path) as slide, pytest.raises(ValueError, match=r"deep\.tif.*uint16.*8 bits"):
        slide.thumbnail()


# Scale


@pytest.mark.parametrize(
    "options, mpp",
    [
        ({"description": APERIO.format("0.4990")}, 0.499),
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),  # a screen's, not a scanner's
        ({"resolution": (20000, 20000), "resolutionunit": "NONE"}, None),
        ({}, None),
    ],
)
def test_the_scale_is_read_from_where_scanners_write_it(tmp_path, options, mpp):
    path = write(tmp_path / "s.tif", make_image(), **TILED, **RGB, metadata=None, **options)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(mpp)
    with open_slide(path, mpp=0.3) as slide:
        assert slide.mpp == 0.3


@pytest.mark.parametrize("size, unit", [(0.5, "µm"), (500, "nm"), (0.0005, "mm")])
def test_the_scale_of_an_ome_tiff_is_read_in_its_unit(tmp_path, size, unit):
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeXUnit": unit}
    path = write(tmp_path / "s.ome.tif", make_image(), **TILED, **RGB, metadata=metadata)
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.5)


def test_views_at_a_scale_know_their_size_and_downsample(tmp_path):
    path = write(tmp_path / "s.tif", make_image(), **TILED, **RGB)
    with open_slide(path, mpp=0.25) as slide:
        view = slide.at_mpp(0.5)
        assert (view.downsample, view.mpp, view.size_px) == (2.0, 0.5, (150, 105))
        with pytest.raises(ValueError, match="1000"):
            slide.at_mpp(1000)
    with open_slide(path) as slide:
        assert slide.at_downsample(2).mpp is None
        with pytest.raises(ValueError, match=r"s\.tif.*open_slide\(path, mpp=\.\.\.\)"):
            slide.at_mpp(0.5)


def test_an_absurd_scale_is_refused_and_can_be_put_right(tmp_path):
    path = write(tmp_path / "s.svs", make_image(), **TILED, **RGB, metadata=None,
                 description=APERIO.format("4990"))  # fmt: skip
    with pytest.raises(ValueError, match=r"s\.svs.*Aperio.*4990.*mpp="):
        open_slide(path)
    with open_slide(path, mpp=0.499) as slide:
        assert slide.mpp == 0.499
    worded = write(tmp_path / "worded.svs", make_image(), **TILED, **RGB, metadata=None,
                   description=APERIO.format("unknown"))  # fmt: skip
    with pytest.raises(ValueError, match=r"worded\.svs.*Aperio.*nan"):
        open_slide(worded)
    for mpp in (0, -1, 1e6, float("nan")):
        with pytest.raises(ValueError, match=r"s\.svs"):
            open_slide(path, mpp=mpp)


# Tiles are decoded once, in any thread and process


class Counting:
    """A source that counts how often each tile is decoded."""

    def __init__(self, source):
        self.source, self.counts = source, {}

    def tile(self, *place):
        self.counts[place] = self.counts.get(place, 0) + 1
        return self.source.tile(*place)

    def __getattr__(self, name):
        return getattr(self.source, name)


def test_a_band_of_overlapping_reads_decodes_each_tile_once(tmp_path):
    image = np.tile(make_image((256, 300)), (1, 79, 1))  # 20,224 pixels wide
    path = write(tmp_path / "wide.tif", image, tile=(256, 256), photometric="rgb")
    with open_slide(path) as slide:
        slide._source = counting = Counting(slide._source)
        view = slide.at_downsample(1)
        for x in range(0, 20224, 128):
            view.read((x, 0), (256, 300))
        assert set(counting.counts.values()) == {1} and len(counting.counts) == 2 * 79


def test_the_cache_keeps_to_its_bytes_and_forgets_the_oldest():
    cache = TileCache(max_bytes=1000)
    decoded = []

    def get(key, size=300):
        return cache.get(key, lambda: decoded.append(key) or np.zeros(size, np.uint8))

    for key in [(0, "a"), (0, "b"), (1, "c"), (0, "a"), (0, "d"), (0, "a"), (0, "b")]:
        get(key)
        assert cache.bytes_held <= 1000
    assert decoded == [(0, "a"), (0, "b"), (1, "c"), (0, "d"), (0, "b")]
    cache.forget(0)
    assert cache.bytes_held <= 300
    get((2, "larger than all"), 5000)
    get((2, "larger than all"), 5000)
    assert decoded.count((2, "larger than all")) == 1
    with pytest.raises(ValueError, match="read-only"):
        get((3, "e"))[0] = 1


def test_a_closed_slide_leaves_no_tiles_behind(tmp_path):
    before = slides._CACHE.bytes_held
    with open_slide(write(tmp_path / "s.tif", make_image(), **TILED, **RGB)) as slide:
        slide.thumbnail()
        assert slides._CACHE.bytes_held > before
    assert slides._CACHE.bytes_held <= before


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_reading_a_closed_slide_names_it_and_the_way_out(tmp_path, suffix):
    path = tmp_path / f"shut{suffix}"
    if suffix == ".tif":
        write(path, make_image(), **TILED, **RGB)
    else:
        Image.fromarray(make_image()).save(path)
    with open_slide(path) as slide:
        view = slide.at_downsample(2)
        view.read((0, 0), (20, 20))  # decoded tiles are forgotten too
    assert view.size_px == slide.at_downsample(2).size_px
    for read in (slide.thumbnail, lambda: view.read((0, 0), (20, 20))):
        with pytest.raises(ValueError, match=rf"shut\{suffix} was closed .* open it again"):
            read()
    with pickle.loads(pickle.dumps(slide)) as again:
        assert again.at_downsample(2).read((0, 0), (20, 20)).shape == (20, 20, 3)


def test_threads_read_one_slide_at_once(odd_slide):
    with open_slide(odd_slide) as slide:
        view = slide.at_downsample(1)
        whole = view.read((0, 0), slide.size_l0)
        slides._CACHE.forget(slide._number)
        wrong = []

        def read(seed):
            rng = np.random.default_rng(seed)
            for _ in range(40):
                x, y = int(rng.integers(0, 380)), int(rng.integers(0, 280))
                if not np.array_equal(view.read((x, y), (50, 50)), whole[y : y + 50, x : x + 50]):
                    wrong.append((x, y))

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_a_pickled_slide_opens_the_same_file(tmp_path):
    path = write(tmp_path / "s.tif", make_image(), **TILED, **RGB)
    with open_slide(path, mpp=0.4) as slide:
        with pickle.loads(pickle.dumps(slide)) as again:
            assert (again.path, again.mpp, again.size_l0) == (path, 0.4, SIZE)
            np.testing.assert_array_equal(again.thumbnail(), slide.thumbnail())
        view = pickle.loads(pickle.dumps(slide.at_mpp(0.8)))
        assert view.size_px == (150, 105)
        view.slide.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking while threads exist
def test_a_forked_worker_has_a_handle_and_locks_of_its_own(odd_slide):
    with open_slide(odd_slide) as slide:
        view = slide.at_downsample(1)
        expected = view.read((100, 100), (80, 80))
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        slides._CACHE.forget(slide._number)
        with slide._source._bytes._lock, slides._CACHE._lock:  # held by a thread at the fork
            worker = context.Process(
                target=lambda: sender.send_bytes(view.read((100, 100), (80, 80)).tobytes())
            )
            worker.start()
        assert receiver.poll(20), "the worker hangs"
        assert receiver.recv_bytes() == expected.tobytes()
        worker.join()
        receiver.close()
        sender.close()


# Bad input


def test_a_file_that_is_absent_or_no_slide_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.tif"):
        open_slide(tmp_path / "absent.tif")
    page = tmp_path / "page.tif"
    page.write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"page\.tif is no TIFF, JPEG or PNG.*3c 68 74"):
        open_slide(page)
    (tmp_path / "empty.svs").touch()
    with pytest.raises(ValueError, match=r"empty\.svs is no TIFF.*0 bytes.*nothing"):
        open_slide(tmp_path / "empty.svs")
    with pytest.raises(ValueError, match="engine 'vips' is not one of"):
        open_slide(page, engine="vips")


@pytest.mark.parametrize("kind", ["SubIFDs", "pages", "classic strips", "planes"])
def test_a_tiff_cut_off_anywhere_is_refused(tmp_path, kind):
    image = make_image((400, 300), blur=False)
    path = tmp_path / "cut.tif"
    if kind == "classic strips":
        write(path, image, **RGB, rowsperstrip=20, compression="lzw")
    elif kind == "planes":
        write(path, chw(image), **PLANES)
    else:
        levels = [image, shrink(image, 2), shrink(image, 4)]
        write_levels(path, levels, subifds=kind == "SubIFDs")
    whole = path.read_bytes()
    cuts = np.random.default_rng(0).integers(9, len(whole) - 1, 40)
    for cut in [9, 60, 200, *cuts.tolist(), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"cut\.tif is damaged or cut off.*again"):
            open_slide(path)


def test_a_file_cut_after_it_was_opened_and_a_spoiled_tile_are_named(tmp_path):
    path = write(tmp_path / "s.tif", make_image(), **TILED, **RGB, compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].dataoffsets[5]
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(content)
    with open_slide(path) as slide:
        with pytest.raises(ValueError, match=r"s\.tif: tile 5 of level 0 cannot be decoded.*copy"):
            slide.thumbnail()
        assert slide.at_downsample(1).read((0, 0), (10, 10)).shape == (10, 10, 3)
        with path.open("rb+") as file:
            file.truncate(offset + 20)
        with pytest.raises(ValueError, match=r"s\.tif is damaged or cut off: tile 5"):
            slide.thumbnail()


def test_a_cut_off_image_is_named(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(make_image(blur=False)).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    with open_slide(path) as slide, pytest.raises(ValueError, match=r"image\.png.*copy it again"):
        slide.thumbnail()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"image\.png"):
        open_slide(path)


def test_strips_too_large_to_read_in_parts_are_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("renal_utils.tiff_files._LARGEST_STRIP", 100_000)
    path = write(tmp_path / "s.tif", make_image(), **RGB, rowsperstrip=210, compression="zlib")
    with pytest.raises(ValueError, match=r"s\.tif has no tiles.*210 rows.*vips tiffsave"):
        open_slide(path)


def test_a_stack_of_focal_planes_is_refused(tmp_path):
    stack = np.zeros((4, 3, 50, 60), np.uint8)
    path = write(tmp_path / "z.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(ValueError, match=r"z\.tif.*axes ZCYX.*one focal plane"):
        open_slide(path)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_regions_without_extent_and_odd_scales_are_refused(odd_slide, size):
    with open_slide(odd_slide) as slide:
        for read in ("read", "read_channels", "read_labels"):
            with pytest.raises(ValueError, match=r"positive|one"):
                getattr(slide.at_downsample(1), read)((0, 0), size)
        for downsample in (0, -2, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="downsample must be a positive number"):
                slide.at_downsample(downsample)


# OpenSlide and real files


def test_without_openslide_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    path = tmp_path / "scan.mrxs"
    path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ImportError, match=r"scan\.mrxs.*pip install renal-utils\[openslide\]"):
        open_slide(path)


def test_openslide_and_tifffile_read_the_same_pyramid(tmp_path):
    pytest.importorskip("openslide")
    image = make_image((640, 416))
    levels = [image, shrink(image, 4)]
    path = write_levels(tmp_path / "s.svs", levels, subifds=False, description=APERIO.format(0.25))
    with open_slide(path) as ours, open_slide(path, engine="openslide") as theirs:
        assert (ours.size_l0, ours.mpp) == (theirs.size_l0, theirs.mpp)
        assert [a.downsample for a in ours.levels] == [a.downsample for a in theirs.levels]
        for downsample in (1, 4, 2.5):
            a, b = ours.at_downsample(downsample), theirs.at_downsample(downsample)
            np.testing.assert_array_equal(a.read((-5, 10), (200, 90)), b.read((-5, 10), (200, 90)))


def test_a_file_that_openslide_does_not_know_is_named(tmp_path):
    pytest.importorskip("openslide")
    path = tmp_path / "odd.ndpi"
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + bytes(200))
    with pytest.raises(ValueError, match=r"odd\.ndpi cannot be read by OpenSlide"):
        open_slide(path)


@pytest.mark.real
def test_the_small_aperio_slide_reads_as_openslide_reads_it(shared_data):
    path = shared_data / "small_slides" / "cmu-1-small-region.svs"
    with open_slide(path) as slide:
        assert (slide.size_l0, slide.mpp, len(slide.levels)) == ((2220, 2967), 0.499, 1)
        ours = slide.at_downsample(1).read((0, 0), slide.size_l0)
    assert 150 < ours.mean() < 250
    pytest.importorskip("openslide")
    with open_slide(path, engine="openslide") as slide:
        assert (slide.size_l0, slide.mpp) == ((2220, 2967), 0.499)
        theirs = slide.at_downsample(1).read((0, 0), slide.size_l0)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 3 and difference.mean() < 0.1  # JPEG decoders round differently


@pytest.mark.real
def test_a_real_tile_opens_as_a_slide(shared_data):
    path = sorted((shared_data / "hubmap_pas_slide" / "images").glob("*.jpg"))[0]
    with open_slide(path, mpp=0.25) as slide:
        view = slide.at_mpp(0.5)
        found = view.read((0, 0), view.size_px)
        whole = np.asarray(Image.open(path).convert("RGB"))
        assert slide.size_l0 == (1600, 1200)
        assert abs(found.mean() - whole.mean()) < 0.5


def test_a_slide_says_what_it_is(tmp_path):
    with Slide(Path(write(tmp_path / "s.tif", make_image(), **TILED, **RGB)), 0.5) as slide:
        assert repr(slide) == "Slide('s.tif', 300 x 210, mpp=0.5)"
