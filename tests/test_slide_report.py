import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from result_folders import discs, write_folder

from renal_utils import plots
from renal_utils.findings import count_slide, find_findings, size_table
from renal_utils.intervals import wilson_share
from renal_utils.labels import GLOMERULI, GLOMERULI_SCLEROSIS, KIDNEY_TISSUES, NUCLEI
from renal_utils.polygon_files import read_polygons
from renal_utils.reports import write_report
from renal_utils.reports.page import Page
from renal_utils.reports.words import summarise, tell
from renal_utils.review import choose_review, find_doubts
from renal_utils.segmented import read_segmented, read_segmented_all, slide_name

SHAPE = (400, 600)


def _places(count, radius=8, class_id=4, seed=0):
    """Discs on a grid, so that none touch."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(10 * 15)[:count]
    return [(40 * (c % 15) + 20, 40 * (c // 15) + 20, radius, class_id) for c in cells.tolist()]


def _row(findings, measure, scope="slide", name=None):
    rows = findings[(findings["measure"] == measure) & (findings["scope"] == scope)]
    return rows.iloc[0] if name is None else rows[rows["name"] == name].iloc[0]


def _findings(*folders, **options):
    slides = read_segmented_all(folders, **options)
    return find_findings([count_slide(slide) for slide in slides])


def _table(tmp_path, lines):
    path = tmp_path / "slides.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_counts_sizes_and_densities_are_those_of_the_map(tmp_path):
    labels = discs(SHAPE, _places(24) + _places(30, class_id=5)[24:])
    folder = write_folder(tmp_path / "a", labels, label_set=KIDNEY_TISSUES)
    found = _findings(folder)
    assert _row(found, "glomeruli")["value"] == 30
    area = 0.8 * 1.2  # 400 x 600 pixels of 2 microns
    assert _row(found, "area_mm2")["value"] == pytest.approx(area)
    density = _row(found, "density")
    assert density["value"] == pytest.approx(30 / area)
    assert density["low"] < density["value"] < density["high"]
    pixels = (labels == 4).sum() / 24
    assert _row(found, "mean_area")["value"] == pytest.approx(4 * pixels)
    diameter = 2 * np.sqrt(4 * pixels / np.pi)
    assert _row(found, "median_diameter")["value"] == pytest.approx(diameter)
    assert diameter == pytest.approx(2 * 2 * 8, rel=0.05)  # discs of radius 8, 2 microns a pixel
    share, wilson = _row(found, "sclerosed_share"), wilson_share(6, 30)
    assert (share["value"], share["low"], share["high"]) == (0.2, wilson.low, wilson.high)


def test_fibrosis_is_the_share_of_the_tissue_not_of_the_glass(tmp_path):
    labels, tissue = np.zeros(SHAPE, np.uint8), np.zeros((100, 150), bool)
    tissue[:, :75] = True  # the left half
    labels[:120, :300] = 2
    folder = write_folder(tmp_path / "a", labels, label_set=KIDNEY_TISSUES, tissue=tissue)
    share = _row(_findings(folder), "fibrosis_share")
    assert share["value"] == pytest.approx(0.3)
    assert (share["units"], share["method"]) == (2, "none: fewer than 5 blocks")


def test_sparse_fibrosis_is_less_certain_in_lumps_than_spread_out(tmp_path):
    rng, widths = np.random.default_rng(0), []
    spread = np.where(rng.random((1000, 1000)) < 0.2, 2, 0).astype(np.uint8)
    lumps = np.kron(rng.random((5, 5)) < 0.2, np.full((200, 200), 2)).astype(np.uint8)
    for name, labels in (("spread", spread), ("lumps", lumps)):
        folder = write_folder(
            tmp_path / name, labels, label_set=KIDNEY_TISSUES, name=f"{name}.tiff"
        )
        row = _row(_findings(folder), "fibrosis_share")
        assert row["units"] == 16  # blocks of half a millimetre
        assert row["low"] < row["value"] < row["high"]
        widths.append(row["high"] - row["low"])
    assert widths[1] > 5 * widths[0]


LEFT_HALF = {
    "type": "Feature",
    "geometry": {
        "type": "Polygon",
        "coordinates": [[[0, 0], [600, 0], [600, 800], [0, 800], [0, 0]]],  # level-0 pixels
    },
    "properties": {"classification": {"name": "Cortex"}},
}


def test_an_outlined_cortex_is_what_is_counted_on(tmp_path):
    labels = discs(SHAPE, [(100, 100, 8, 1), (200, 100, 8, 1), (500, 300, 8, 1)])
    folder = write_folder(tmp_path / "a", labels, label_set=GLOMERULI, name="s.ome.tiff")
    (tmp_path / "s.geojson").write_text(json.dumps([LEFT_HALF]))
    table = _table(tmp_path, ["slide,donor,cortex", "s.ome.tiff,d1,s.geojson"])
    found = _findings(folder, table=table)
    assert _row(found, "glomeruli")["value"] == 2
    assert _row(found, "area_mm2")["value"] == pytest.approx(0.48)
    (tmp_path / "s.geojson").write_text(
        json.dumps([{**LEFT_HALF, "properties": {"name": "Medulla"}}])
    )
    with pytest.raises(ValueError, match="no outline called 'Cortex'"):
        _findings(folder, table=table)


@pytest.fixture(scope="module")
def six_donors(tmp_path_factory):
    """Six donors with two slides each; sclerosis differs between donors, not within."""
    root, lines = tmp_path_factory.mktemp("six"), ["slide,donor,group"]
    for donor in range(6):
        places = [(*p[:3], 2 if i < 2 * donor else 1) for i, p in enumerate(_places(20))]
        labels = discs(SHAPE, places)
        probability = np.where(labels > 0, 240, 0)
        probability[:, :200] = np.where(labels[:, :200] > 0, 140, 0)
        for section in range(2):
            name = f"d{donor}_{section}"
            write_folder(
                root / "all" / name,
                labels,
                label_set=GLOMERULI_SCLEROSIS,
                name=f"{name}.tiff",
                probability=probability,
            )
            lines.append(f"{name},donor {donor},{'DN' if donor > 2 else 'normal'}")
    return root / "all", _table(root, lines)


@pytest.fixture
def donors(six_donors, tmp_path):
    """The same, as a copy to spoil."""
    return shutil.copytree(six_donors[0], tmp_path / "all"), six_donors[1]


def test_over_donors_the_donor_is_the_unit(six_donors):
    folder, table = six_donors
    found = _findings(folder, table=table)
    assert (found["scope"] == "slide").sum() == 12 * 7
    row = _row(found, "sclerosed_share", "all")
    assert (row["value"], row["units"], row["method"]) == (0.25, 6, "bootstrap, donors")
    naive = wilson_share(60, 240)
    assert row["high"] - row["low"] > 1.5 * (naive.high - naive.low)
    one = _row(found, "sclerosed_share", "donor", "donor 3")
    assert (one["value"], one["units"], one["group"]) == (0.3, 40, "DN")


def test_few_donors_get_no_interval_over_donors(six_donors):
    folder, table = six_donors
    found = _findings(folder / "d1_0", folder / "d2_0", folder / "d2_1", table=table)
    row = _row(found, "density", "all")
    assert row["value"] == pytest.approx(20 / 0.96)
    assert np.isnan(row["low"])
    assert row["method"] == "none: fewer than 5 donors"


def test_without_a_scale_shares_remain_and_sizes_are_said_to_be_unknown(tmp_path):
    labels = discs(SHAPE, _places(12, class_id=1))
    folder = write_folder(tmp_path / "a", labels, label_set=GLOMERULI_SCLEROSIS, mpp=None)
    report = write_report([folder], tmp_path / "out")
    for measure in ("density", "mean_area", "median_diameter", "area_mm2"):
        row = _row(report.findings, measure)
        assert np.isnan(row["value"])
        assert row["method"] == "the slide's scale is not known"
    assert _row(report.findings, "sclerosed_share")["value"] == 0
    assert any("scale is not known: a" in text for text in report.remarks)


def test_a_slide_without_glomeruli_or_tissue_is_reported_as_such(tmp_path):
    empty = np.zeros(SHAPE, np.uint8)
    folder = write_folder(
        tmp_path / "a", empty, label_set=KIDNEY_TISSUES, tissue=np.zeros((100, 150), bool)
    )
    report = write_report([folder], tmp_path / "out")
    assert _row(report.findings, "glomeruli")["value"] == 0
    assert _row(report.findings, "density")["method"] == "no tissue"
    assert _row(report.findings, "sclerosed_share")["method"] == "no object"
    assert _row(report.findings, "fibrosis_share")["method"] == "no blocks"
    assert summarise(report.findings)[0] == "0 glomeruli were found on 1 slide of 1 donor."
    assert "No object stands out." in report.html_path.read_text()


def test_doubts_find_the_odd_the_unsure_the_cut_and_the_unsteady(tmp_path):
    places = [(*p[:2], 7 + i % 3, 1) for i, p in enumerate(_places(40))]
    places[0] = (*places[0][:2], 3, 1)  # far smaller than the others
    labels = discs(SHAPE, [*places, (599, 200, 8, 1)])
    probability, spread = np.where(labels, 250, 0), np.zeros(SHAPE)
    for values, index, value in ((probability, 1, 140), (spread, 2, 60)):
        x, y = places[index][:2]
        values[y - 12 : y + 12, x - 12 : x + 12] = value
    folder = write_folder(
        tmp_path / "a", labels, label_set=GLOMERULI, probability=probability, spread=spread
    )
    slide = read_segmented(folder)
    chosen = choose_review(slide)
    why = {(round(r.x_l0), round(r.y_l0)): r.reasons for r in chosen.itertuples()}
    for index, reason in ((0, "unusual size"), (1, "near the threshold"), (2, "answers differ")):
        x, y = places[index][:2]
        assert why[2 * x + 1, 2 * y + 1] == reason
    edge = why.pop(next(place for place in why if place[0] > 1180))
    assert "cut by the slide's edge" in edge.split(", ")
    assert len(why) == 3
    doubts = find_doubts(slide)["doubt"]
    assert doubts.is_monotonic_decreasing
    assert doubts.between(0, 1).all()
    assert len(choose_review(slide, limit=2)) == 2
    with pytest.raises(ValueError, match="limit must be 0 or more objects a slide, not -1"):
        choose_review(slide, limit=-1)


def test_a_doubtful_object_outside_the_cortex_is_said_to_lie_there(tmp_path):
    """Two of four objects are doubtful, one on each side of the cortex's border."""
    labels = discs(SHAPE, [(x, 100, 8, 1) for x in (100, 200, 400, 500)])
    probability = np.where(labels, 250, 0)
    probability[:, 150:450] = np.where(labels[:, 150:450], 140, 0)
    folder = write_folder(
        tmp_path / "a", labels, label_set=GLOMERULI, name="s.tiff", probability=probability
    )
    (tmp_path / "s.geojson").write_text(json.dumps([LEFT_HALF]))
    table = _table(tmp_path, ["slide,cortex", "s.tiff,s.geojson"])
    for given, outside in ((table, ", outside the cortex, not counted"), (None, "")):
        report = write_report([folder], tmp_path / "out", table=given)
        why = {round(row.x_l0): row.reasons for row in report.reviews["s"].itertuples()}
        assert why == {401: "near the threshold", 801: f"near the threshold{outside}"}
        named = [item.properties["name"] for item in read_polygons(report.review_path("s"))]
        assert sum(f"(near the threshold{outside})" in name for name in named) == (
            1 if given else 2
        )
        assert f"near the threshold{outside}" in report.html_path.read_text()


def test_the_list_to_look_through_holds_the_same_outlines_in_its_own_order(six_donors, tmp_path):
    folder, table = six_donors
    report = write_report([folder], tmp_path / "out", table=table)
    name = "d3_1"
    chosen, listed = report.reviews[name], read_polygons(report.review_path(name))
    everything = read_polygons(folder / name / "objects.geojson")
    assert 0 < len(chosen) == len(listed) < 20
    for place, (row, item) in enumerate(zip(chosen.itertuples(), listed, strict=True), start=1):
        assert item.polygon.equals(everything[row.object - 1].polygon)
        assert item.properties["name"].startswith(f"Look {place}: {item.label} {row.object} (")
        assert 0 <= item.properties["measurements"]["doubt"] <= 1


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_stands_alone_and_says_what_it_is_not(six_donors, tmp_path):
    folder, table = six_donors
    report = write_report([folder], tmp_path / "out", table=table)
    text = report.html_path.read_text(encoding="utf-8")
    reader = _Reader()
    reader.feed(text)
    links = [v for _, a in reader.tags for k, v in a.items() if k in ("src", "href")]
    assert links and all(link.startswith("data:image/png;base64,") for link in links)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in reader.tags}
    assert all(len(a["alt"]) > 10 for tag, a in reader.tags if tag == "img")
    words = " ".join(reader.words)
    assert "Not for diagnosis" in words
    assert "240 glomeruli were found on 12 slides of 6 donors." in words
    assert "25.0%" in words
    assert str(tmp_path) not in text
    content = json.loads(report.json_path.read_text())
    assert len(content["findings"]) == len(report.findings)
    assert content["warning"].startswith("Not for diagnosis")
    again = write_report([folder], tmp_path / "again", table=table)
    assert again.html_path.read_text(encoding="utf-8") == text


def _headings_and_pictures(report):
    reader = _Reader()
    reader.feed(report.html_path.read_text(encoding="utf-8"))
    return reader.words, [a["alt"] for tag, a in reader.tags if tag == "img"]


def test_one_donor_is_told_once_with_its_own_intervals(six_donors, tmp_path):
    folder, table = six_donors
    report = write_report([folder / "d3_0"], tmp_path / "out", table=table)
    words, pictures = _headings_and_pictures(report)
    assert "Donor donor 3" in words and "All donors" not in words and "all slides" not in words
    assert not any("fewer than 5 donors" in text for text in words)
    assert not any("by donor" in text for text in pictures)
    density = _row(report.findings, "density", "donor", "donor 3")
    assert words.count(tell(density)) == 2  # of the donor, and of its one slide
    words, pictures = _headings_and_pictures(write_report([folder], tmp_path / "all", table=table))
    assert "All donors" in words and any("by donor" in text for text in pictures)


def test_the_slides_picture_is_large_enough_to_see_single_glomeruli(six_donors, tmp_path):
    folder, table = six_donors
    report = write_report([folder / "d3_0"], tmp_path / "out", table=table)
    coded = re.findall(r'src="data:image/png;base64,([^"]+)"', report.html_path.read_text())
    widths = [Image.open(io.BytesIO(base64.b64decode(one))).width for one in coded]
    assert max(widths) >= 600


@pytest.mark.parametrize("repeat", [1, 4])  # a slide smaller than the picture, and a larger one
def test_the_pictures_scale_bar_is_that_of_the_tissue(tmp_path, monkeypatch, repeat):
    labels = np.repeat(np.repeat(discs(SHAPE, _places(9, class_id=1)), repeat, 0), repeat, 1)
    spread = np.where(labels > 0, 60, 0)
    tissue = np.ones((labels.shape[0] // 4, labels.shape[1] // 4), bool)
    options = {"label_set": GLOMERULI, "spread": spread, "tissue": tissue, "mpp": 0.5}
    folder, widths = write_folder(tmp_path / "a", labels, **options), []
    for name in ("plot_overlay", "plot_probability"):
        draw = getattr(plots, name)

        def note(image, *more, draw=draw, **given):
            widths.append(image.shape[1] * given["mpp"])
            return draw(image, *more, **given)

        monkeypatch.setattr(plots, name, note)
    write_report([folder], tmp_path / "out")
    assert widths == pytest.approx([600 * repeat * 0.5] * 2, rel=0.01)


def test_the_scale_that_the_network_saw_stands_among_the_settings(tmp_path):
    labels = discs(SHAPE, _places(12, class_id=1))
    for name, mpp, told in (("a", 0.25, "0.25"), ("b", None, "not given")):
        options = {"label_set": GLOMERULI, "name": f"{name}.tiff", "mpp": mpp}
        folder = write_folder(tmp_path / name, labels, **options)
        words, _ = _headings_and_pictures(write_report([folder], tmp_path / f"out_{name}"))
        column = words.index("Microns a pixel that it saw") - words.index("Network (hash)")
        row = words.index("Settings of the segmentation")
        cells = [text for text in words[row:] if text.strip()]
        assert cells[cells.index(name) + 1 + column] == told


def test_names_cannot_become_markup():
    page = Page("<b>", warning="a & b")
    page.table(["<i>"], [["<script>alert(1)</script>"]], caption="c")
    page.picture(b"png", '" onerror="x', caption="<u>")
    text = page.text()
    assert "<script>" not in text and "<b>" not in text and "<u>" not in text
    reader = _Reader()
    reader.feed(text)
    assert "<script>alert(1)</script>" in reader.words
    assert next(a for tag, a in reader.tags if tag == "img")["alt"] == '" onerror="x'


def test_quantiles_of_sizes_are_those_of_the_objects(six_donors):
    folder, _ = six_donors
    counts = [count_slide(slide) for slide in read_segmented_all([folder])]
    table = size_table(counts)
    assert list(table.columns) == ["10%", "25%", "50%", "75%", "90%"]
    assert table.loc["all slides", "50%"] == pytest.approx(
        np.median(np.concatenate([c.glomeruli["diameter_um"] for c in counts]))
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "summary.json").unlink(), "no finished results"),
        (lambda f: (f / "summary.json").write_text("{"), "summary.json is not valid JSON"),
        (lambda f: (f / "objects.csv").write_text("object,class\n"), "no column"),
        (lambda f: _drop_last_line(f / "objects.csv"), "holds 19 objects, summary.json says 20"),
        (lambda f: (f / "run.json").unlink(), "holds no results"),
        (lambda f: (f / "tissue.png").write_bytes(b""), "tissue.png"),
    ],
)
def test_a_folder_that_was_spoilt_is_named(donors, spoil, message):
    folder = donors[0] / "d0_0"
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        _findings(folder)
    assert "d0_0" in str(caught.value)


def _drop_last_line(path):
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def test_what_would_be_counted_twice_or_mixed_up_is_refused(six_donors, tmp_path):
    folder, table = six_donors
    labels = discs(SHAPE, _places(3, class_id=1))
    twin = write_folder(tmp_path / "twin", labels, label_set=GLOMERULI_SCLEROSIS, name="d0_0.tiff")
    with pytest.raises(ValueError, match="of the same slide"):
        _findings(folder, twin)
    other = write_folder(tmp_path / "other", labels, label_set=GLOMERULI, name="o.tiff")
    with pytest.raises(ValueError, match="different label sets"):
        _findings(folder, other)
    with pytest.raises(ValueError, match="no row for the slide 'o'"):
        _findings(other, table=table)
    nuclei = write_folder(tmp_path / "n", labels, label_set=NUCLEI, name="n.tiff")
    with pytest.raises(ValueError, match="no glomeruli"):
        _findings(nuclei)
    assert len(read_segmented_all([folder, folder / "d0_0"])) == 12


def test_a_slides_name_has_no_suffixes():
    names = ("a.1.ome.tiff", "b.svs", "c_wsi.tiff")
    assert [slide_name(name) for name in names] == ["a.1", "b", "c_wsi"]


def test_slides_are_said_to_be_donors_of_their_own_only_where_no_table_says_whose_they_are(
    six_donors, tmp_path
):
    folder, table = six_donors
    folders = [folder / "d0_0", folder / "d1_0"]
    for number, (given, said) in enumerate(((table, False), (None, True))):
        remarks = write_report(folders, tmp_path / str(number), table=given).remarks
        assert any("donor of its own" in text for text in remarks) == said
