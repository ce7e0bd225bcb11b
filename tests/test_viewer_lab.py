"""The slide view where it is used: in JupyterLab, in a real browser, by mouse."""

import base64

import cv2
import numpy as np
import pytest
from browser import TOKEN, run_browser, run_lab, wait_for
from conftest import PROJECT
from viewer_cases import spoil_tile, write_results_of, write_slide

from renal_utils.slides import open_slide

SIZE = (3000, 2000)  # width, height
PLACES = [(300, 250, 110, 1), (1100, 300, 90, 1), (750, 500, 120, 1), (400, 800, 100, 1)]
CELLS = (
    "from renal_utils.viewer import view_slide\n"
    'view = view_slide("slide.tiff", labels="results", height_px=600)\nview',
    'view_slide("damaged.tiff", labels="results/labels.ome.tiff", label_set="kidney_tissues", '
    "height_px=300)",
)
VIEW = "document.querySelectorAll('.renal-view')"
PICTURES = PROJECT / "build" / "viewer"  # not kept by git


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("anywidget", reason="the slide view needs the extra [viewer]")
    folder = tmp_path_factory.mktemp("lab")
    with run_browser(tmp_path_factory.mktemp("browser")) as page:
        slide = write_slide(folder / "slide.tiff", SIZE)
        write_results_of(slide, folder / "results", SIZE, PLACES)
        damaged = write_slide(folder / "damaged.tiff", SIZE, tile_px=128)
        spoil_tile(damaged, 0, level=3)  # what a view 300 pixels high shows: 3 x 2 tiles
        write_notebook(folder / "view.ipynb")
        with run_lab(folder) as address:
            page.folder = folder
            page.call("Page.navigate", url=f"{address}doc/tree/view.ipynb?token={TOKEN}")
            run_notebook(page)
            yield page


def write_notebook(path):
    import nbformat
    from nbformat import v4

    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [v4.new_code_cell(source, id=f"cell-{n}") for n, source in enumerate(CELLS)]
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def run_notebook(page):
    shown = "[...(window.jupyterapp?.shell?.widgets('main') ?? [])][0]"
    ready = f"!!{shown}?.sessionContext?.session?.kernel"
    wait_for("the notebook's kernel", lambda: page.evaluate(ready), seconds=120)
    page.evaluate(f"window.jupyterapp.shell.activateById({shown}.id)")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => 1)")
    wait_for("the views", lambda: page.evaluate(f"{VIEW}.length") == 2)
    settle(page)
    settle(page, 1)


def settle(page, number=0):
    """Wait until a view has all tiles that it shows, and has said where it is."""
    page.evaluate("new Promise((done) => setTimeout(done, 500))")
    wait_for("the tiles", lambda: page.evaluate(f"{VIEW}[{number}].dataset.waiting === '0'"))
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)))")


def picture(page, number=0):
    """Return what the canvas shows, RGB."""
    url = page.evaluate(f"{VIEW}[{number}].querySelector('canvas').toDataURL('image/png')")
    coded = np.frombuffer(base64.b64decode(url.split(",")[1]), np.uint8)
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def place(page, selector):
    """Return left, top, width and height of something of the first view on the page."""
    code = f"(() => {{ const b = {VIEW}[0].querySelector({selector!r}).getBoundingClientRect(); "
    return page.evaluate(code + "return [b.x, b.y, b.width, b.height]; })()")


def press(page, title):
    """Click on what has this title: a check box of the panel, or a button."""
    code = f"""(() => {{
        const all = [...{VIEW}[0].querySelectorAll("label, button")];
        const box = all.find((one) => one.textContent === {title!r}).getBoundingClientRect();
        return [box.x + 10, box.y + box.height / 2];
    }})()"""
    page.drag(*[tuple(page.evaluate(code))] * 2)
    settle(page)


def turn_wheel(page, xy, zoom):
    """Zoom in by a factor, above a place of the canvas, in turns that a real wheel makes."""
    left, top = place(page, "canvas")[:2]
    for _ in range(4):
        delta = -50 * float(np.log2(zoom))
        page.mouse("mouseWheel", left + xy[0], top + xy[1], deltaX=0, deltaY=delta)
    settle(page)


def read_state(page):
    words = page.execute("print(*view.centre_l0, view.downsample, view.tiles_sent)").split()
    return tuple(map(float, words))


def spots(width, scale, centre_l0, xy_l0):
    """Return columns and rows of the canvas where level-0 places are."""
    xy = (np.array(xy_l0, float) - centre_l0) / scale + [width / 2, 300]
    return tuple(xy.astype(int).T)


@pytest.mark.slow
def test_the_view_shows_moves_zooms_and_toggles_in_jupyterlab(page):
    page.screenshot(PICTURES / "whole.png")
    over = picture(page)
    x, y, scale, sent = read_state(page)
    height, width = over.shape[:2]
    assert (height, (x, y), scale) == (600, (1500, 1000), pytest.approx(1.04 * 2000 / 600))
    assert sent < 60  # of 126 of the slide and as many of each overlay, on all levels

    # The overlay: half vermilion within the objects, and nothing elsewhere.
    press(page, "Classes")
    plain = picture(page)
    inside = spots(width, scale, (x, y), [(2 * a, 2 * b) for a, b, _, _ in PLACES])[::-1]
    outside = spots(width, scale, (x, y), [(150, 1500), (1500, 200), (2700, 1800)])[::-1]
    np.testing.assert_allclose(over[inside], (plain[inside] + [213, 94, 0]) / 2, atol=2)
    np.testing.assert_array_equal(over[outside], plain[outside])
    with open_slide(page.folder / "slide.tiff") as slide:
        view = slide.at_downsample(scale)
        expected = np.array(
            [view.read((round(a / scale), round(b / scale)), (1, 1))[0, 0]
             for a, b in [(150, 1500), (1500, 200), (2700, 1800)]]
        )  # fmt: skip
    assert np.abs(plain[outside] - expected).mean() < 12  # the grain, on another grid

    # Borders and single classes.
    press(page, "Classes")
    np.testing.assert_array_equal(picture(page), over)
    changed = (over != plain).any(axis=2).sum()
    press(page, "Borders only")
    page.screenshot(PICTURES / "borders.png")
    borders = (picture(page) != plain).any(axis=2)
    assert 0.02 * changed < borders.sum() < 0.2 * changed and not borders[inside].any()
    press(page, "Borders only")
    press(page, "Glomerulus")
    np.testing.assert_array_equal(picture(page), plain)
    press(page, "Glomerulus")

    # Probabilities come only when they are wanted.
    assert page.execute("print({k[0] for k in view.reader.cache._tiles})").count("prob") == 0
    press(page, "Classes")
    press(page, "Probability")
    page.screenshot(PICTURES / "probability.png")
    shown = picture(page)
    assert np.abs(shown[inside] - plain[inside]).min(axis=1).mean() > 10
    assert np.abs(shown[outside] - plain[outside]).max() <= 6  # 5 of 255 there
    press(page, "Probability")

    # Full resolution by the wheel: the place under the pointer stays, pixel for pixel.
    left, top = place(page, "canvas")[:2]  # the browser gives a pointer whole pixels of the page
    aim = np.array([round(left + width / 2 + 120) - left, round(top + 180) - top])
    below = (aim - [width / 2, 300]) * scale + [x, y]
    turn_wheel(page, aim, zoom=scale)
    x, y, scale, _ = read_state(page)
    assert scale == pytest.approx(1)
    np.testing.assert_allclose((aim - [width / 2, 300]) * scale + [x, y], below, atol=1)
    page.screenshot(PICTURES / "zoomed.png")
    zoomed = picture(page)
    corner = round(x - width / 2) + 100, round(y - 300) + 100
    with open_slide(page.folder / "slide.tiff") as slide:
        truth = slide.at_downsample(1).read((corner[0] - 2, corner[1] - 2), (404, 304)).astype(int)
    found = zoomed[100:400, 100:500]
    offsets = [(dy, dx) for dy in range(5) for dx in range(5)]
    apart = {o: np.abs(truth[o[0] :, o[1] :][:300, :400] - found).mean() for o in offsets}
    best = min(apart, key=apart.get)
    assert apart[best] < 3 and max(abs(best[0] - 2), abs(best[1] - 2)) <= 1

    # Dragging moves it by as many pixels.
    page.drag((left + 500, top + 400), (left + 430, top + 350))
    settle(page)
    np.testing.assert_array_equal(picture(page)[100:400, 100:400], zoomed[150:450, 170:470])
    status = page.evaluate(f"{VIEW}[0].querySelector('.status').textContent")
    assert "µm" in status and "0.500 µm a pixel" in status

    # From Python, and back.
    page.execute("view.go_to((2200, 600), downsample=2); view.shown = ['labels']")
    settle(page)
    assert read_state(page)[:3] == (2200, 600, 2)
    assert np.abs(picture(page)[300, width // 2] - [213, 94, 0]).mean() < 100
    press(page, "Fit")
    np.testing.assert_array_equal(picture(page), over)

    # A damaged slide in the second view: grey there, the rest goes on, and a note says so.
    note = page.evaluate(f"{VIEW}[1].querySelector('.note').textContent")
    assert note == "1 damaged tile(s) of the file are grey"
    grey = (np.abs(picture(page, 1) - 170) <= 2).all(axis=2)
    assert 0.02 < grey.mean() < 0.2
    page.screenshot(PICTURES / "last.png")
    assert page.complaints == []
