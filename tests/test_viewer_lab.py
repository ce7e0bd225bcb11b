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
pytestmark = pytest.mark.slow
VIEW = "document.querySelectorAll('.renal-view')"
BESIDE = [(150, 1500), (1500, 200), (2700, 1800)]  # level-0 pixels outside of all objects
VERMILION = np.array([213, 94, 0])
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
            page.sent_at_first = read_state(page)[3]
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


@pytest.fixture
def view(page):
    """The page with its first view as it came: the whole slide, the classes over it."""
    page.execute("view.shown, view.hidden, view.outline = ['labels'], [], False")
    press(page, "Fit")
    yield page
    assert page.complaints == []


def find_marks(page):
    """Return rows and columns, on the canvas, of the objects' middles and of places without any."""
    x, y, scale, _ = read_state(page)
    middle = np.array([round(place(page, "canvas")[2]) / 2, 300])
    middles = [(2 * a, 2 * b) for a, b, _, _ in PLACES]
    spots = [(np.array(xy) - (x, y)) / scale + middle for xy in (middles, BESIDE)]
    return tuple(tuple(xy.astype(int).T)[::-1] for xy in spots)


def picture_without(page, *titles):
    """Return the picture with check boxes of the panel changed, and change them back."""
    for title in titles:
        press(page, title)
    shown = picture(page)
    for title in titles:
        press(page, title)
    return shown


def find_on_slide(page, part, xy_l0):
    """Return by how many pixels a part of the canvas lies off, and how far its colours are."""
    height, width = part.shape[:2]
    x, y = (round(v) - 2 for v in xy_l0)
    with open_slide(page.folder / "slide.tiff") as slide:
        truth = slide.at_downsample(1).read((x, y), (width + 4, height + 4)).astype(int)
    apart = {
        (dx - 2, dy - 2): np.abs(truth[dy : dy + height, dx : dx + width] - part).mean()
        for dx in range(5)
        for dy in range(5)
    }
    return min(apart.items(), key=lambda item: item[1])


def test_the_whole_slide_fits_and_few_tiles_are_sent(view):
    view.screenshot(PICTURES / "whole.png")
    x, y, scale, _ = read_state(view)
    assert picture(view).shape[0] == 600
    assert ((x, y), scale) == ((1500, 1000), pytest.approx(1.04 * 2000 / 600))
    assert view.sent_at_first < 60  # of 126 of the slide and as many of each overlay, on all levels


def test_classes_lie_half_over_their_objects_and_nowhere_else(view):
    over, plain = picture(view), picture_without(view, "Classes")
    inside, beside = find_marks(view)
    np.testing.assert_allclose(over[inside], (plain[inside] + VERMILION) / 2, atol=2)
    np.testing.assert_array_equal(over[beside], plain[beside])
    np.testing.assert_array_equal(picture(view), over)


def test_without_them_the_slides_own_colours_are_seen(view):
    plain, scale = picture_without(view, "Classes"), read_state(view)[2]
    with open_slide(view.folder / "slide.tiff") as slide:
        reduced = slide.at_downsample(scale)
        pixels = [reduced.read((round(x / scale), round(y / scale)), (1, 1)) for x, y in BESIDE]
    expected = np.stack(pixels)[:, 0, 0].astype(int)
    assert np.abs(plain[find_marks(view)[1]] - expected).mean() < 12  # the grain, on another grid


def test_borders_are_drawn_instead_of_areas(view):
    plain = picture_without(view, "Classes")
    areas = (picture(view) != plain).any(axis=2)
    press(view, "Borders only")
    view.screenshot(PICTURES / "borders.png")
    borders = (picture(view) != plain).any(axis=2)
    assert 0.02 * areas.sum() < borders.sum() < 0.2 * areas.sum()
    assert not borders[find_marks(view)[0]].any()


def test_a_single_class_can_be_hidden(view):
    np.testing.assert_array_equal(
        picture_without(view, "Glomerulus"), picture_without(view, "Classes")
    )


def test_probabilities_come_only_when_they_are_wanted(view):
    kept = "print(sorted({key[0] for key in view.reader.cache._tiles}))"
    assert "probability" not in view.execute(kept)
    plain = picture_without(view, "Classes")
    press(view, "Classes")
    press(view, "Probability")
    view.screenshot(PICTURES / "probability.png")
    assert "probability" in view.execute(kept)
    shown, (inside, beside) = picture(view), find_marks(view)
    assert np.abs(shown[inside] - plain[inside]).min(axis=1).mean() > 10
    assert np.abs(shown[beside] - plain[beside]).max() <= 6  # 5 of 255 there


def test_the_wheel_goes_to_full_resolution_and_the_place_under_the_pointer_stays(view):
    left, top, width, _ = place(view, "canvas")
    middle = np.array([width / 2, 300])
    x, y, scale, _ = read_state(view)
    # the browser gives a pointer whole pixels of the page
    aim = np.array([round(left + width / 2 + 120) - left, round(top + 180) - top])
    below = (aim - middle) * scale + [x, y]
    turn_wheel(view, aim, zoom=scale)
    x, y, scale, _ = read_state(view)
    assert scale == pytest.approx(1)
    np.testing.assert_allclose((aim - middle) * scale + [x, y], below, atol=1)
    view.screenshot(PICTURES / "zoomed.png")
    press(view, "Classes")
    part = picture(view)[100:400, 100:500]
    off, apart = find_on_slide(view, part, (x - width / 2 + 100, y - 300 + 100))
    assert apart < 3 and max(map(abs, off)) <= 1


def test_dragging_moves_the_slide_by_as_many_pixels(view):
    view.execute("view.go_to((1000, 700))")
    settle(view)
    left, top = place(view, "canvas")[:2]
    before = picture(view)
    view.drag((left + 500, top + 400), (left + 430, top + 350))
    settle(view)
    np.testing.assert_array_equal(picture(view)[100:400, 100:400], before[150:450, 170:470])
    status = view.evaluate(f"{VIEW}[0].querySelector('.status').textContent")
    assert "µm" in status and "0.500 µm a pixel" in status


def test_python_moves_the_view_and_a_button_brings_it_back(view):
    over = picture(view)
    view.execute("view.go_to((2200, 600), downsample=2); view.shown = ['labels']")
    settle(view)
    assert read_state(view)[:3] == (2200, 600, 2)
    middle = picture(view)[300, over.shape[1] // 2]  # the second of PLACES
    assert np.abs(middle - VERMILION).mean() < 100
    press(view, "Fit")
    np.testing.assert_array_equal(picture(view), over)


def test_check_boxes_follow_python_even_the_one_pressed_last(view):
    ask = (
        f"[...{VIEW}[0].querySelectorAll('.panel input[type=checkbox]')].map((one) => one.checked)"
    )
    before, over = view.evaluate(ask), picture(view)
    press(view, "Classes")
    assert view.evaluate(ask) != before
    view.execute("view.shown = ['labels']")
    settle(view)
    assert view.evaluate(ask) == before
    press(view, "Classes")
    assert view.execute("print(view.shown)") == "[]\n"
    assert (picture(view) != over).any()


def test_damaged_tiles_are_grey_with_a_note_and_the_rest_is_shown(view):
    note = view.evaluate(f"{VIEW}[1].querySelector('.note').textContent")
    assert note == "1 damaged tile(s) of the file are grey"
    grey = (np.abs(picture(view, 1) - 170) <= 2).all(axis=2)
    assert 0.02 < grey.mean() < 0.2
    view.screenshot(PICTURES / "last.png")
