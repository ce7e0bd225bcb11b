"""The drawn archive: whole or not there, same bytes for same seed, readable as the real sets."""

import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from renal_utils.archive import check_archive, draw_archive, ensure_drawn, read_drawn
from renal_utils.datasets.hubmap import read_anatomy, read_hubmap, read_hubmap_information
from renal_utils.datasets.kpis import read_kpis
from renal_utils.label_sources import open_labels
from renal_utils.labels import KIDNEY_TISSUES
from renal_utils.polygon_files import read_polygons
from renal_utils.polygons import rasterise
from renal_utils.runtime import read_json
from renal_utils.slides import open_slide

OPTIONS = {"seed": 1, "slide_px": 2048, "donors": 2}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return draw_archive(tmp_path_factory.mktemp("drawn") / "archive", workers=1, **OPTIONS)


def _copy(archive, tmp_path):
    return shutil.copytree(archive, tmp_path / "copy")


def test_archive_is_whole_and_small(archive):
    assert check_archive(archive) > 15
    assert sum(p.stat().st_size for p in archive.rglob("*") if p.is_file()) < 20e6
    assert not list(archive.parent.glob(".*.partial"))


def test_read_as_hubmap(archive):
    records = read_hubmap(archive / "hubmap")
    assert len(records) == 2 and len({r.donor for r in records}) == 2
    assert read_hubmap_information(archive / "hubmap")["width_pixels"].eq(2048).all()
    assert {o.label for o in read_anatomy(records[0])} == {"Cortex", "Medulla"}
    with open_slide(records[0].image_path) as slide:
        assert slide.size_l0 == (2048, 2048) and slide.mpp == pytest.approx(0.5)
        assert len(slide.levels) >= 3


def test_all_layouts_hold_the_same_glomeruli(archive):
    hubmap = read_hubmap(archive / "hubmap")[0]
    outlines = read_hubmap(archive / "hubmap", truth="polygons")[0]
    tissues = next(r for r in read_drawn(archive) if r.image_id == hubmap.image_id)
    masks = []
    for record in (hubmap, outlines, tissues):
        with open_labels(record) as labels:
            ids = labels.read((0, 0), (2048, 2048))
        assert not (ids == 255).any()
        masks.append(ids >= KIDNEY_TISSUES.id_of("glomerulus") if record is tissues else ids == 1)
    runs, polygons, classes = masks
    np.testing.assert_array_equal(runs, classes)
    assert (runs & polygons).sum() / (runs | polygons).sum() > 0.98
    assert len(read_polygons(outlines.truth_path)) > 1


def test_read_as_kpis(archive):
    patches, slides = (read_kpis(archive / "kpis", images=what) for what in ("patches", "slides"))
    assert {r.group for r in slides} == {"normal", "56Nx"} == {r.group for r in patches}
    assert {r.truth_kind for r in patches + slides} == {"threshold_image"}
    with open_labels(patches[0]) as patch, open_labels(slides[0]) as slide:
        same = patch.read((0, 0), (2048, 2048)) == slide.read((0, 0), (2048, 2048))
    assert same.mean() > 0.999


def test_tables_tell_the_objects_of_the_label_maps(archive):
    for record in read_drawn(archive, truth="nuclei"):
        with open_slide(record.truth_path) as slide:
            assert slide.size_l0 == (2048, 2048)
        table = record.truth_path.with_suffix(".csv").read_text().splitlines()
        assert table[0] == "id,kind,x_l0,y_l0" and len(table) > 2000


def test_splits_never_share_a_donor(tmp_path):
    from renal_utils.drawn_donors import list_donors

    people = list_donors(0, 12, 4096)
    assert len({p.patient for p in people}) == len({p.image_id for p in people}) == 12
    assert len({p.case for p in people}) == 12
    splits = [p.split for p in people[:8]]
    assert splits == ["train"] * 4 + ["val", "test"] * 2
    for start in (0, 4):
        assert len({p.group for p in people[start : start + 4]}) == 4


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_workers(archive, tmp_path):
    other = draw_archive(tmp_path / "other", workers=2, **OPTIONS)
    assert read_json(other / "archive.json") == read_json(archive / "archive.json")


def test_drawing_again_gives_the_same_bytes(tmp_path):
    first, second = (
        draw_archive(tmp_path / name, workers=1, seed=2, slide_px=1200, donors=1)
        for name in ("first", "second")
    )
    assert read_json(first / "archive.json") == read_json(second / "archive.json")


def test_ensure_drawn_keeps_what_is_there(archive):
    before = (archive / "archive.json").stat().st_mtime_ns
    assert ensure_drawn(archive, **OPTIONS) == archive
    assert (archive / "archive.json").stat().st_mtime_ns == before


def test_ensure_drawn_refuses_another_archive(archive):
    with pytest.raises(ValueError, match=r"'seed': 1.*'seed': 7"):
        ensure_drawn(archive, **{**OPTIONS, "seed": 7})


def test_ensure_drawn_renews_an_outdated_archive(tmp_path):
    options = {"seed": 0, "slide_px": 1200, "donors": 1}
    folder = draw_archive(tmp_path / "a", workers=1, **options)
    contents = read_json(folder / "archive.json")
    (folder / "archive.json").write_text(json.dumps({**contents, "drawing": -1}))
    ensure_drawn(folder, **options)
    assert read_json(folder / "archive.json") == contents
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("terminal", [True, False])
def test_drawing_shows_a_bar_in_a_terminal_and_nothing_in_a_file(tmp_path, monkeypatch, terminal):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    folder = ensure_drawn(tmp_path / "a", slide_px=1200, donors=1)
    assert ("drawing slides" in screen.getvalue()) is terminal
    length = len(screen.getvalue())
    ensure_drawn(folder, slide_px=1200, donors=1)
    assert len(screen.getvalue()) == length


def test_a_process_that_draws_does_without_torch():
    code = "import sys, renal_utils.drawn_donors; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_changed_file_is_named(archive, tmp_path):
    folder = _copy(archive, tmp_path)
    slide = next((folder / "hubmap" / "train").glob("*.tiff"))
    data = bytearray(slide.read_bytes())
    data[len(data) // 2] ^= 1
    slide.write_bytes(data)
    with pytest.raises(ValueError, match=f"{slide.name} is not as it was drawn.*renal data draw"):
        check_archive(folder)
    slide.unlink()
    with pytest.raises(ValueError, match=f"{slide.name} is missing"):
        check_archive(folder)


def test_a_stray_file_is_named(archive, tmp_path):
    folder = _copy(archive, tmp_path)
    (folder / "hubmap" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt does not belong"):
        check_archive(folder)


def test_no_archive_is_refused(tmp_path):
    for act in (check_archive, read_drawn):
        with pytest.raises(ValueError, match="no drawn archive"):
            act(tmp_path)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is no drawn archive"):
        draw_archive(tmp_path, workers=1, **OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_archive_is_replaced_only_when_told(archive):
    with pytest.raises(ValueError, match="overwrite=True"):
        draw_archive(archive, workers=1, **OPTIONS)


@pytest.mark.parametrize(
    ("option", "value"), [("donors", 0), ("workers", 0), ("seed", -1), ("slide_px", 500)]
)
def test_bad_numbers_are_refused_before_anything_is_drawn(tmp_path, option, value):
    with pytest.raises(ValueError, match=str(value)):
        draw_archive(tmp_path / "a", **{"workers": 1, **OPTIONS, option: value})
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("renal_utils.archive.write_tables", fail)
    with pytest.raises(OSError, match="No space"):
        draw_archive(tmp_path / "a", workers=1, seed=0, slide_px=1200, donors=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_looks_whole(tmp_path):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_draw_small, args=(tmp_path / "a",))
    process.start()
    while process.is_alive() and not list(tmp_path.glob(".a.*.partial/hubmap/train/*.tiff")):
        time.sleep(0.05)
    process.kill()
    process.join()
    assert not (tmp_path / "a").exists()
    for left in tmp_path.glob(".a.*.partial"):
        os.utime(left, (0, 0))
    _draw_small(tmp_path / "a")
    assert check_archive(tmp_path / "a") > 0
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.slow
def test_two_racing_processes_both_end_well(tmp_path):
    context = multiprocessing.get_context("spawn")
    racers = [context.Process(target=_draw_small, args=(tmp_path / "a",)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert check_archive(tmp_path / "a") > 0
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def _draw_small(folder):
    ensure_drawn(folder, seed=0, slide_px=1200, donors=1)


def test_outlines_give_back_the_instances(archive):
    record = read_hubmap(archive / "hubmap", truth="polygons")[0]
    objects = read_polygons(record.truth_path)
    drawn = rasterise(objects, (2048, 2048))
    assert drawn.max() == len(objects)
