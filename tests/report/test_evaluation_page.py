"""report.html: what it says, and how it looks to a browser that opens it from disk."""

import html as escapes
import re

import pytest
import torch
from browsing import requested, visit
from evaluations import make_metrics, make_page, make_result

from cifar_lightning.analysis.confidence import coverage
from cifar_lightning.metrics import evaluate
from cifar_lightning.report import charts, html
from cifar_lightning.report.comparison_text import Rows
from cifar_lightning.report.evaluation import Evaluated
from cifar_lightning.report.evaluation_page import MAX_ROWS

HOSTILE = [
    *("<script>alert(1)</script>", "\u202eterces", "a" * 300, "", "line\nbreak", "\ud800half"),
    *("قطة", "&amp; \"'", "{{ 7*7 }}", "</style><img src=x onerror=alert(1)>", "--><b>"),
]
"""Names of classes and files may hold anything."""

INTERVALS = {"low": 0.43, "high": 0.57, "drop_low": 0.05, "drop_high": 0.35}
OTHER_SETS = [
    {"name": "CIFAR-10.1 v6", "num_images": 2000, "acc": 0.72, "drop": 0.1, "loss": 1.25, "paired": False, "p": None},
    {"name": "<b>blur", "num_images": 200, "acc": 0.5, "drop": 0.31, "loss": 2.5, "paired": True, "p": 1e-9},
]
for row, note in zip(OTHER_SETS, ("", "our <i>own"), strict=True):
    row |= INTERVALS | {"note": note, "source": row["name"]}


def evaluated(logits, targets, classes):
    return Evaluated(split="test", classes=classes, targets=targets, plain=evaluate(logits, targets))


def first_picture(page: str, heading: str) -> str:
    """What stands below the first picture of a section."""
    return text_of(page[page.index(f">{heading}</h2>") :].split("<li>")[1].split("</li>")[0])


def text_of(page: str) -> str:
    """What a reader sees, roughly: no style, no script, no tags, one space between words."""
    inline = r"</?(bdi|span|code|strong)\b[^>]*>"
    body = re.sub(r"(?s)<(style|script|title)\b.*?</\1>|<[^>]*>", " ", re.sub(inline, "", page))
    return " ".join(escapes.unescape(body).split())


def test_the_page_begins_with_the_verdict():
    result = make_result(["cat", "dog", "ship"], tta=True)
    metrics = make_metrics(result)
    text = text_of(make_page(result, metrics))
    assert text.startswith("a run on noise The checkpoint logs/run/checkpoints/last.ckpt, trained with seed 3, on all")
    assert "on all 200 test images (drawn at random)." in text
    acc, low, high = (100 * metrics[f"test/acc{end}"] for end in ("", "_low", "_high"))
    num_correct = int(result.is_correct.sum())
    expected = f"Accuracy {acc:.2f} % 95 % interval {low:.2f} % to {high:.2f} %; {num_correct} of 200 are right"
    assert expected in text
    acc, low, high = (100 * metrics[f"test/acc{end}_tta"] for end in ("", "_low", "_high"))
    assert f"(TTA) {acc:.2f} % 95 % interval {low:.2f} % to {high:.2f} %" in text
    for label, name in (("Log loss", "loss"), ("Brier score", "brier"), ("Calibration error (ECE)", "ece")):
        assert f"{label} {metrics[f'test/{name}']:.4f} {metrics[f'test/{name}_tta']:.4f} with TTA" in text
    worst = min(metrics["test/class_acc"], key=metrics["test/class_acc"].__getitem__)
    assert f"Hardest class {worst}: {100 * metrics['test/class_acc'][worst]:.1f} % are right" in text
    assert f"Labels {metrics['num_suspected_labels']} of 200 are suspected to be wrong" in text
    assert "Top-5" not in text


@pytest.mark.parametrize(
    ("num_right", "num_wrong", "confidence", "said"),
    [
        (1, 0, 0.55, "as sure as it should be, as far as one image tells."),
        (20, 0, 0.96, "as sure as it should be, as far as 20 images tell."),
        (200, 0, 0.9, "it is not sure enough."),
        (0, 20, 0.9, "it is too sure of itself."),
        (50, 50, 0.9, "it is too sure of itself."),
    ],
)
def test_confidences_are_judged_by_as_many_images_as_there_are(num_right, num_wrong, confidence, said):
    logit = torch.tensor(confidence).logit()
    logits = torch.stack([logit, torch.tensor(0.0)]).repeat(num_right + num_wrong, 1)
    targets = torch.tensor([0] * num_right + [1] * num_wrong)
    result = evaluated(logits, targets, ["cat", "dog"])
    assert said in text_of(make_page(result, make_metrics(result)))


def test_the_page_says_whether_confidences_are_calibrated():
    plain, calibrated = (make_result(["cat", "dog"], temperature=temperature) for temperature in (None, 0.5))
    text = text_of(make_page(plain))
    assert "The confidences are not calibrated: the checkpoint has no temperature." in text
    assert "data.val_size=auto" in text
    metrics = make_metrics(calibrated)
    text = text_of(make_page(calibrated, metrics))
    before, after = metrics["test/ece"], metrics["test/ece_calibrated"]
    assert "divided by the temperature 0.500, which was fitted on the validation images of training." in text
    assert f"The calibration error is {after:.4f} with it, {before:.4f} without." in text
    assert f"Calibration error (ECE) {after:.4f} {before:.4f} uncalibrated" in text
    assert "not calibrated" not in text
    assert "before the temperature" in make_page(calibrated)


def test_pictures_are_the_surest_mistakes_the_least_sure_hits_and_the_worst_labels():
    names = ["cat", "dog"]
    result = make_result(names, files=[f"test/{i}.png" for i in range(200)], temperature=0.5)
    page = make_page(result)
    confidence, is_correct = result.shown.confidence, result.is_correct
    surest = max((i for i in range(200) if not is_correct[i]), key=lambda i: confidence[i])
    target, pred = (names[values[surest]] for values in (result.targets, result.plain.preds))
    sure, other = 100 * confidence[surest], 100 * (1 - confidence[surest])
    mistake = f"{pred} {sure:.1f} % is {target} {other:.1f} %"
    assert first_picture(page, "Most confident mistakes") == f"{mistake} test/{surest}.png"
    least = min((i for i in range(200) if is_correct[i]), key=lambda i: confidence[i])
    hit = f"{names[result.targets[least]]} {100 * confidence[least]:.1f} %"
    assert first_picture(page, "Least confident hits") == f"{hit} test/{least}.png"
    suspect, rather = int(result.label_errors.index[0]), names[result.label_errors.suggested[0]]
    of_label = 100 * result.shown.logits.softmax(1)[suspect, result.targets[suspect]]
    label = f"labelled {names[result.targets[suspect]]} {of_label:.1f} % rather {rather}?"
    assert first_picture(page, "Suspected label errors") == f"{label} test/{suspect}.png"
    no_files = make_result(names, temperature=0.5)
    assert first_picture(make_page(no_files), "Most confident mistakes") == f"{mistake} image {surest}"


def test_a_hit_is_a_near_miss_below_a_confidence_of_80_percent_only():
    logit = torch.tensor([0.7, 0.79, 0.81, 0.99]).logit()
    logits, targets = torch.stack([logit, torch.zeros(4)], 1), torch.zeros(4, dtype=torch.int64)
    page = make_page(evaluated(logits, targets, ["cat", "dog"]))
    section = page[page.index(">Least confident hits</h2>") :].split("<h2")[0]
    assert re.findall(r"[\d.]+ %", section) == ["80 %", "70.0 %", "79.0 %"]
    page = make_page(evaluated(logits[2:], targets[2:], ["cat", "dog"]))
    section = page[page.index(">Least confident hits</h2>") :].split("<h2")[0]
    assert "All hits have a confidence of 80 % or more." in section
    assert "<img" not in section


@pytest.mark.parametrize(
    ("confidence", "said"),
    [
        (torch.linspace(0.5, 0.9, 2000), "The line ends at 20 images: of fewer an accuracy says little."),
        (torch.linspace(0.5, 0.9, 100), "The line ends at 10 images: of fewer an accuracy says little."),
        (torch.linspace(0.5, 1.5, 100).clamp(max=0.9), "The line ends at the 60 images of the highest confidence."),
    ],
)
def test_the_caption_of_the_coverage_says_why_its_line_ends(confidence, said):
    curve = coverage(confidence, torch.ones(len(confidence), dtype=torch.bool))
    assert charts.end_of_coverage(curve) == said
    bottom, top = charts.coverage_curve(curve).axes[0].get_ylim()
    assert bottom < top == 1


def test_a_classifier_without_mistakes():
    targets = torch.arange(40) % 2
    text = text_of(make_page(evaluated(10 * torch.eye(2)[targets], targets, ["cat", "dog"])))
    assert "Accuracy 100.00 %" in text
    assert "There are no mistakes." in text
    assert "Suspected label errors None found." in text
    assert "No image is predicted as another class than its own." in text
    assert "Hardest class" not in text


def test_a_classifier_without_hits():
    targets = torch.arange(40) % 2
    text = text_of(make_page(evaluated(10 * torch.eye(2)[1 - targets], targets, ["cat", "dog"])))
    assert "Accuracy 0.00 %" in text
    assert "Least confident hits" not in text
    assert "90 % not even the most confident images reach it" in text


def test_a_class_without_images_has_dashes():
    targets = torch.arange(40) % 2
    page = make_page(evaluated(10 * torch.eye(3)[targets], targets, ["a", "b", "c"]))
    row = page[page.index('<th scope="row"><bdi>c</bdi>') :].split("</tr>")[0]
    assert text_of(row) == "c 0 – – – 0 –"


@pytest.mark.parametrize("num_classes", [MAX_ROWS, MAX_ROWS + 1, 1000, 3000])
def test_many_classes_are_bounded(num_classes):
    result = make_result([f"class {i}" for i in range(num_classes)], num_images=2000, skill=6.0)
    page = make_page(result)
    assert len(page) < 1_500_000
    acc = {name: value for name, value in make_metrics(result)["test/class_acc"].items() if value == value}
    if num_classes > MAX_ROWS:
        worst = page[page.index("with the lowest recall") :].split("</table>")[0]
        shown = [acc[name] for name in re.findall(r'<th scope="row"><bdi>(.*?)</bdi>', worst)]
        assert shown == sorted(acc.values())[:10]
        best = page[page.index("with the highest recall") :].split("</table>")[0]
        shown = [acc[name] for name in re.findall(r'<th scope="row"><bdi>(.*?)</bdi>', best)]
        assert shown == sorted(acc.values(), reverse=True)[:10]
        assert ("metrics.json has all" in page) == (num_classes == 3000)


def test_other_sets_training_and_recipe_are_shown_where_there_are_any():
    result = make_result(["cat", "dog"])
    text = text_of(make_page(result, make_metrics(result, other_sets=OTHER_SETS)))
    assert "CIFAR-10.1 v6 2,000 72.00 % 43.0 % to 57.0 % 10.00 % 5.00 % to 35.00 % – 1.2500" in text
    assert "<b>blur 200 50.00 % 43.0 % to 57.0 % 31.00 % 5.00 % to 35.00 % < 0.0001 2.5000" in text
    assert "<b>blur: our <i>own." in text
    assert "optimizer.lr 0.1" in text
    assert "not shown" not in text  # the names of the classes are no recipe
    assert "python evaluate.py ckpt=logs/run/checkpoints/last.ckpt" in text
    assert "data test 0123abc" in text
    page = make_page(result)
    assert "Loss during training" in page
    assert "Other test sets" not in page
    page = make_page(result, curves={})
    assert "No curves" in page


def test_what_is_evaluated_is_said_plainly():
    result = make_result(["cat", "dog"])
    text = text_of(make_page(result, make_metrics(result, num_images_of_split=5000, is_own_data=False)))
    assert "on the first 200 of 5,000 test images" in text
    assert "They are not the test images that the run was started with." in text
    text = text_of(make_page(make_result(["cat", "dog"], split="val", temperature=1.5)))
    assert "on all 200 validation images" in text
    assert "which flatters the figures" in text
    assert "These are those validation images" in text


def test_very_many_suspected_labels_are_a_fault_of_the_network():
    words = "are suspected to be wrong, which says more of the network than of the labels."
    assert words in text_of(make_page(make_result(["cat", "dog", "ship"], skill=0.0)))
    assert words not in text_of(make_page(make_result(["cat", "dog", "ship"], skill=9.0)))


def test_the_same_evaluation_gives_the_same_page():
    assert make_page(make_result(["cat", "dog"])) == make_page(make_result(["cat", "dog"]))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page with hostile names, calibrated, with everything that a page may have."""
    files = [f"test/{HOSTILE[i % len(HOSTILE)]}/{i}.png" for i in range(200)]
    result = make_result(HOSTILE, tta=True, temperature=0.7, files=files)
    names = {"name": HOSTILE[0], "data": HOSTILE[1], "data_note": HOSTILE[2], "ckpt": HOSTILE[4], "device": HOSTILE[5]}
    metrics = make_metrics(result, **names, overrides=HOSTILE, other_sets=OTHER_SETS)
    path = tmp_path_factory.mktemp("page") / "report.html"
    recipe = {HOSTILE[0]: HOSTILE[2], "data": {HOSTILE[1]: HOSTILE[5]}}
    path.write_bytes(make_page(result, metrics, shape=(1, 120, 200), recipe=recipe).encode("utf-8"))
    return path


def opened(browser, path, width, scheme="light"):
    visit(browser, f"file://{path}", width)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_opens_the_page_from_disk(browser, hostile, width, scheme):
    opened(browser, hostile, width, scheme)
    assert browser.get_log("browser") == []
    assert [url for url in requested(browser) if not url.startswith("data:")] == [f"file://{hostile}"]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    grounds = {"light": "rgb(247, 246, 243)", "dark": "rgb(18, 21, 22)"}
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == grounds[scheme]
    broken = "return [...document.images].filter((image) => !image.naturalWidth).length"
    assert browser.execute_script(broken) == 0


def test_names_are_text(browser, hostile):
    opened(browser, hostile, 1280)
    heads = "document.querySelector('#classes ~ .frame').querySelectorAll('tbody th')"
    names = browser.execute_script(f"return [...{heads}].map((head) => head.textContent)")
    expected = [*HOSTILE[:1], "\\u202eterces", "a" * 119 + "…", "“”", "line\\nbreak", "\\ud800half", *HOSTILE[6:]]
    assert names == expected
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.execute_script("return document.querySelectorAll('img[onerror], body b').length") == 0
    assert "\u202e" not in browser.page_source


def test_a_click_on_a_heading_sorts(browser, hostile):
    opened(browser, hostile, 390)
    table = browser.find_elements("css selector", "#classes ~ .frame table.sortable")[0]
    button = table.find_elements("css selector", "thead button")[2]
    assert button.text.startswith("recall")
    seen = []
    for _ in range(2):
        browser.execute_script("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", button)
        button.click()
        cells = [cell.get_attribute("data-value") for cell in table.find_elements("css selector", "tbody td.bar")]
        seen.append([float(cell) for cell in cells])
    assert seen[0] == sorted(seen[0])
    assert seen[1] == sorted(seen[0], reverse=True)
    assert len(set(seen[0])) > 3


def test_the_page_is_read_without_a_script(browser, hostile):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(browser, hostile, 1280)
        text = browser.find_element("css selector", "main").text
        browser.implicitly_wait(0)  # for what is not there
        assert browser.find_elements("css selector", "thead button") == []
    finally:
        browser.implicitly_wait(20)
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    for heading in (
        "Classes",
        "Confusion",
        "Confidence",
        "Most confident mistakes",
        "Suspected label errors",
        "Training",
    ):
        assert f"\n{heading}\n" in text
    assert "recall" in text


def test_a_narrow_table_breaks_long_words_only_and_has_all_its_lines(browser, tmp_path):
    names = ["checkerboard", "horizontal stripes", "optimizer.weight_decay=0.0005/and_so_on", "m" * 60]
    path = tmp_path / "report.html"
    path.write_text(make_page(make_result(names)), encoding="utf-8")
    opened(browser, path, 390)
    heads = "[...document.querySelector('#classes ~ .frame').querySelectorAll('tbody th')]"
    lines = browser.execute_script(f"return {heads}.map((head) => head.firstChild.getClientRects().length)")
    assert lines[0] == 1
    assert lines[1] <= 2
    assert min(lines[2:]) > 1
    widths = browser.execute_script(f"return {heads}.map((head) => head.offsetWidth)")
    assert max(widths) < 390 / 2
    cells = "[...document.querySelectorAll('.sortable tbody tr > *')]"
    drawn = browser.execute_script(f"return {cells}.map((cell) => getComputedStyle(cell).borderTopWidth)")
    assert set(drawn) == {"1px"}
    browser.execute_script("document.querySelector('#classes ~ .frame').scrollLeft = 100")
    columns = "['thead th', 'tbody th'].map((one) => document.querySelector('#classes ~ .frame ' + one))"
    lefts = browser.execute_script(f"return {columns}.map((cell) => cell.getBoundingClientRect().left)")
    assert lefts[0] == lefts[1]  # a heading stays above its column
    collapse = browser.execute_script("return getComputedStyle(document.querySelector('table')).borderCollapse")
    assert collapse == "separate"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.lr=0.001", "optimizer.lr=0.001"),
        ("optimizer.weight_decay=0.001 b", "optimizer.<wbr>weight_<wbr>decay=<wbr>0.001 b"),
        ("<b>/" + 20 * "=", "&lt;b&gt;/" + 20 * "="),
    ],
)
def test_long_words_may_break_where_their_parts_are_joined(text, expected):
    rows = Rows({"group": "left"}, [[text]], total=1)
    template = "{% from 'rows.html' import table %}{{ table(rows, 'x.csv') }}"
    assert f">{expected}</th>" in html._environment().from_string(template).render(rows=rows)
