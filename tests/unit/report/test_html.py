"""The report: one file, in order, loud about stamps, whole also of a run that was killed."""

import re
from html.parser import HTMLParser

import pytest
from voc_images import write_predictions, write_voc_images

from incdet.report.html import write_report

CLASSES = ["circle", "cross", "ring", "star"]
VOID = {"meta", "img", "br", "link", "input", "hr", "path", "use"}


class Nesting(HTMLParser):
    """Checks that every tag is closed in order and collects ids."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.images = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.images += [attrs] if tag == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(html: str) -> Nesting:
    parser = Nesting()
    parser.feed(html)
    assert parser.open == []
    return parser


def report(folders, tmp_path, **options) -> str:
    out = tmp_path / "report.html"
    write_report(folders, out, **options)
    return out.read_text(encoding="utf-8")


def with_predictions(folders, truth):
    """The folders, each with detections of every object of the classes that a task has seen."""
    found = [(one["image_id"], name, box, 0.9) for one in truth for name, box in one["objects"]]
    for folder in folders:
        for task in (1, 2):
            write_predictions(folder, task, CLASSES, [f for f in found if f[1] in CLASSES[: 2 * task]])
    return folders


@pytest.fixture
def compared(make_run, tmp_path):
    """Two runs with images and predictions; the second one is stamped and has a hostile name."""
    truth = write_voc_images(tmp_path / "data", CLASSES)
    options = {"root": tmp_path / "data"}
    folders = [
        make_run("a", methods=["finetune"], matrix=((0.7,), (0.0, 0.8)), **options),
        make_run(
            "b", name="<script>b</script>", stamps=["oracle"], extra={"pl": {"circle": {"recall": 0.5}}}, **options
        ),
    ]
    return with_predictions(folders, truth)


def test_the_page_is_one_sound_file_without_outside_parts(compared, tmp_path):
    html = report(compared, tmp_path)
    page = parsed(html)
    assert len(page.ids) == len(set(page.ids))
    assert page.images
    assert all(image["alt"] and image["src"].startswith("data:image/jpeg;base64,") for image in page.images)
    assert "<script" not in html
    assert "<link" not in html
    links = re.findall(r'(?:src|href)="([^"]{0,9})', html)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert len(html) < 3_000_000


def test_the_parts_stand_in_order(compared, tmp_path):
    html = report(compared, tmp_path, title="Two runs")
    assert "<h1>Two runs</h1>" in html
    parts = ['class="lead"', "The numbers", "Class by class", "Task by task", "What is left", "Seen on test images"]
    places = [html.index(part) for part in [*parts, "Protocol:", "What the methods report", "Configuration"]]
    assert places == sorted(places)


def test_what_was_kept_is_in_the_paragraph_and_the_numbers_are_in_the_table(compared, tmp_path):
    html = report(compared, tmp_path)
    assert "Plain fine-tuning (finetune) <strong>keeps 0 %</strong>" in html
    assert re.search(r'finetune</th>(<td class="number">[\d.]+</td>){9}', html)


def test_a_stamp_is_a_badge_wherever_the_run_is_named(compared, tmp_path):
    html = report(compared, tmp_path)
    named = [m.end() for m in re.finditer("&lt;script&gt;b&lt;/script&gt;", html)]
    config = html.index("<h2>Configuration")
    mentions = [html[end : end + 40] for end in named if end < config]
    assert len(mentions) >= 8
    loud = [text for text in mentions if text.startswith((' <strong class="badge">ORACLE', " [ORACLE]"))]
    # The one that is left is the protocol's or config's own text, not a mention of the run.
    assert loud == mentions


def test_every_field_of_the_protocol_is_shown(compared, tmp_path):
    html = report(compared, tmp_path)
    for field in ("class_order_hash", "abc123def456", "difficult", "fingerprint", "resnet18-fpn", "0123456"):
        assert field in html


def test_stored_crops_are_counted_beside_stored_images(make_run, tmp_path):
    crops = make_run("a", memory={"images": 0, "crops": 517, "bytes": 1_794_226})
    html = report([crops, make_run("b")], tmp_path)
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in html.split("<tr>")]
    memories = {row[at - 1]: row[at - 2] for row in rows for at, cell in enumerate(row) if cell in ("1.79", "0.15")}
    assert memories == {"517": "0", "–": "20"}  # crops, images
    assert "crops" not in report([make_run("c")], tmp_path)


def test_what_methods_keep_stands_beside_the_memory(make_run, tmp_path):
    memory = {"images": 0, "bytes": 150_000}
    html = report([make_run("a", memory=memory | {"method_bytes": 2_340_000}), make_run("b", seed=1)], tmp_path)
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in html.split("<tr>")]
    assert [row[row.index("0.15") + 1] for row in rows if "0.15" in row] == ["2.34", "–"]


def test_absent_images_are_said_and_do_not_stop_the_report(make_run, tmp_path):
    html = report([make_run("a", root=tmp_path / "nowhere")], tmp_path)
    assert "No images are shown: " in html
    assert "<img" not in html


def test_a_killed_run_shows_what_it_finished(make_run, tmp_path):
    folder = make_run("a", finished=1)
    (folder / "metrics.jsonl").unlink()
    (folder / "config.yaml").unlink()
    html = report([folder], tmp_path)
    parsed(html)
    assert "was stopped after 1 of 2 tasks" in html
    assert "No training loss was logged" in html
    assert "holds no config.yaml" in html


def test_other_protocols_get_parts_of_their_own_and_differences_are_warned_about(make_run, tmp_path):
    folders = [make_run("a"), make_run("b", protocol="loco"), make_run("c", methods=["joint"], model="resnet50-fpn")]
    html = report(folders, tmp_path)
    assert html.count('class="lead"') == 2
    assert html.count("the runs differ in model") == 1
    ids = parsed(html).ids
    assert len(ids) == len(set(ids))


@pytest.fixture
def crowded(make_run, tmp_path):
    """Three settings of two seeds and a stamped run: one more than there are colours."""
    truth = write_voc_images(tmp_path / "data", CLASSES)
    options = {"root": tmp_path / "data"}
    folders = [
        make_run(f"{name}_{seed}", methods=[name], seed=seed, matrix=((0.7,), (kept, 0.8)), **options)
        for name, kept in (("finetune", 0.0), ("replay", 0.6), ("joint", 0.7))
        for seed in (0, 1)
    ]
    folders.append(make_run("s", name="<script>s", stamps=["oracle"], extra={"a": 1}, **options))
    return with_predictions(folders, truth)


def test_more_runs_than_colours_are_shown_by_setting(crowded, tmp_path):
    html = report(crowded, tmp_path)
    page = parsed(html)
    assert len(page.ids) == len(set(page.ids))
    assert "<script" not in html
    assert html.count('<table class="heat">') == 1
    assert html.count("<svg") == 3  # tasks, matrices, losses
    columns = re.findall(r"<figcaption><strong>(.*?)</strong>(?!<strong)", html.replace("\n", ""))
    assert len(columns) == 6 * html.count('<div class="panels">')  # the truth, before, and four settings
    assert html.count("Of each setting one run is shown: that of seed 0.") == 2
    few = report(crowded[1:], tmp_path)
    assert 'class="heat"' not in few
    assert 'class="panels"' not in few
    assert few.count("<svg") == 3 + 6  # bars, lines, losses, and a matrix of each run


def test_the_numbers_of_many_runs_are_means_over_seeds_and_each_run_is_folded_away(crowded, tmp_path):
    html = report(crowded, tmp_path)
    seconds = (80 + 80, 81 + 81)
    mean = f"{sum(seconds) / 120:.1f}"
    assert re.search(rf'replay</th><td class="number">2</td>.*<td class="number">{mean}</td></tr>', html)
    assert "Each of the 7 runs" in html
    folded = html[html.index("Each of the 7 runs") : html.index("Class by class")]
    assert folded.count('<th scope="row">') == 7
    assert "<li>Plain fine-tuning (finetune, seed 1) <strong>keeps 0 %</strong>" in folded


def test_a_stamp_is_a_badge_among_many_runs_too(crowded, tmp_path):
    html = report(crowded, tmp_path)
    ends = [m.end() for m in re.finditer("&lt;script&gt;s", html[: html.index("<h2>Configuration")])]
    mentions = [html[end : end + 40] for end in ends]
    assert len(mentions) >= 8
    assert all(text.startswith((' <strong class="badge">ORACLE', " [ORACLE]")) for text in mentions)


def test_the_tool_writes_beside_the_run_and_names_a_bad_folder(make_run, tmp_path, run_tool):
    folder = make_run("a")
    assert run_tool("report", folder) == (0, f"{folder / 'report.html'}\n", "")
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    code, _, error = run_tool("report", tmp_path / "absent")
    assert code == 2
    assert "absent is not a folder" in error
